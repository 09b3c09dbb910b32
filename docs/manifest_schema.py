"""The JSON Schema of manifest.json, made from the types that read and write it.

    python docs/manifest_schema.py        # writes docs/manifest.schema.json

A test compares the file with what this script makes.
"""

from __future__ import annotations

import json
import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from camp_sdk.runtime.contract import TensorSpec
from camp_sdk.runtime.files import write_aside
from camp_sdk.runtime.lowered import PRECISION_FOLDERS, LoweredGraphs
from camp_sdk.runtime.manifest import (
    ACTIVATIONS,
    FITS,
    MAX_PIXELS,
    OPTIONAL_GRAPHS,
    REQUIRED_GRAPHS,
    RESAMPLES,
    SCHEMA_VERSION,
    TOKENIZER_FILE,
    FileEntry,
    Manifest,
    PixelSpec,
)
from camp_sdk.runtime.manifest_values import MAX_SHORTLIST, MAX_STOP_WORDS, FirstStage

FILE = Path(__file__).with_name("manifest.schema.json")
PLAIN: dict[type, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
}
GRAPHS = (*REQUIRED_GRAPHS, *OPTIONAL_GRAPHS)
# What the types do not say, by class and field.
RULES: dict[tuple[type, str], dict[str, Any]] = {
    (Manifest, "activation"): {"enum": list(ACTIVATIONS)},
    (Manifest, "graphs"): {"required": list(REQUIRED_GRAPHS), "propertyNames": {"enum": list(GRAPHS)}},
    (Manifest, "precisions"): {"propertyNames": {"enum": list(PRECISION_FOLDERS)}},
    (Manifest, "files"): {"required": [TOKENIZER_FILE]},
    (Manifest, "stop_words"): {"maxItems": MAX_STOP_WORDS},
    (Manifest, "vocabulary"): {"minimum": 1},
    (Manifest, "logit_unit"): {"exclusiveMinimum": 0},
    (FirstStage, "shortlist"): {"minimum": 1, "maximum": MAX_SHORTLIST},
    (FirstStage, "weight"): {"minimum": 0},
    (LoweredGraphs, "graphs"): {"propertyNames": {"enum": list(GRAPHS)}},
    (LoweredGraphs, "logit_error"): {"minimum": 0},
    (FileEntry, "bytes"): {"minimum": 0},
    (FileEntry, "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    (PixelSpec, "height"): {"minimum": 1, "maximum": MAX_PIXELS},
    (PixelSpec, "width"): {"minimum": 1, "maximum": MAX_PIXELS},
    (PixelSpec, "fit"): {"enum": list(FITS)},
    (PixelSpec, "resample"): {"enum": list(RESAMPLES)},
}
OF_TOKENIZER = ("max_words", "stop_words", "vocabulary")  # fields that the file keeps under "tokenizer"
OPTIONAL = (
    "fit",
    "resample",
    "checks",
    "logit_error",
    "rest_in_bfloat16",
    "sizes",
    "made_with",
    "training",
    "parity",
    "logit_unit",
    "first_stage",
    "weight",
)  # a reader has a default for these


def manifest_schema() -> dict[str, Any]:
    """The schema of a whole manifest."""
    schema = _of_class(Manifest)
    inner = {name: schema["properties"].pop(name) for name in OF_TOKENIZER}
    tokenizer = {
        "type": "object",
        "properties": {"file": {"const": TOKENIZER_FILE}} | inner,
        "required": ["max_words"],
    }
    schema["properties"] |= {"schema_version": {"const": SCHEMA_VERSION}, "tokenizer": tokenizer}
    required = [name for name in schema["required"] if name not in OF_TOKENIZER]
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "manifest.json of a camp-sdk bundle"}
    return head | schema | {"required": sorted([*required, "schema_version", "tokenizer"])}


def _of_class(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    described = _arguments(cls.__doc__ or "")
    properties: dict[str, Any] = {}
    for field in fields(cls):  # type: ignore[arg-type]  # a dataclass
        about = {"description": described[field.name]} if field.name in described else {}
        properties[field.name] = _of(hints[field.name]) | RULES.get((cls, field.name), {}) | about
    return {"type": "object", "properties": properties, "required": [n for n in properties if n not in OPTIONAL]}


def _of(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint in PLAIN:
        return dict(PLAIN[hint])
    if hint is Any:
        return {}
    if origin is types.UnionType:
        return {"anyOf": [{"type": "null"} if part is type(None) else _of(part) for part in arguments]}
    if hint == tuple[TensorSpec, ...]:  # in the file, the name is the key
        tensor = _of_class(TensorSpec)
        del tensor["properties"]["name"]
        return {"type": "object", "additionalProperties": tensor | {"required": ["dtype", "shape"]}}
    if origin is dict:
        values = _of(arguments[1])
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    if origin is tuple and arguments[-1] is ...:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0]), "minItems": len(arguments), "maxItems": len(arguments)}
    if is_dataclass(hint):
        return _of_class(hint)  # type: ignore[arg-type]  # a class, not an instance
    raise TypeError(f"no schema for {hint}")


def _arguments(docstring: str) -> dict[str, str]:
    """The lines of a docstring's list of arguments, by name."""
    found: dict[str, str] = {}
    name = ""
    for line in docstring.partition("Args:")[2].splitlines():
        text = line.strip()
        if line.startswith(" " * 12) and name:
            found[name] += f" {text}"
        elif ": " in text:
            name, _, found[name] = text.partition(": ")
    return {name: text[0].upper() + text[1:] for name, text in found.items()}


if __name__ == "__main__":
    with write_aside(FILE) as aside:
        aside.write_text(json.dumps(manifest_schema(), indent=2) + "\n", encoding="utf-8")
