"""The manifest's schema: one set of types reads it, writes it, and makes the JSON Schema in docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from manifest_schema import FILE, manifest_schema

from camp_sdk.runtime.manifest import MANIFEST_FILE, Manifest, read_manifest, write_manifest
from tests.helpers.manifests import Change, drop, put


@pytest.fixture(params=["feature_bundle", "picture_bundle"])
def folder(request: pytest.FixtureRequest) -> Path:
    """A bundle of features with lower precisions, and one of pictures."""
    return Path(request.getfixturevalue(request.param))


def document(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")))


def test_the_schema_file_is_made_from_the_types() -> None:
    made = json.dumps(manifest_schema(), indent=2) + "\n"
    assert FILE.read_text(encoding="utf-8") == made, "run: python docs/manifest_schema.py"


def test_exported_manifests_fit_the_schema(folder: Path) -> None:
    jsonschema.validate(document(folder), manifest_schema())


def test_what_is_read_is_written_again(folder: Path) -> None:
    manifest = read_manifest(folder / MANIFEST_FILE)
    assert manifest.as_dict() == document(folder)
    assert Manifest.from_dict(manifest.as_dict()) == manifest


def test_written_manifests_list_the_files_that_are_there(bundle_copy: Path) -> None:
    manifest = read_manifest(bundle_copy / MANIFEST_FILE)
    (bundle_copy / "bf16").mkdir(exist_ok=True)
    (bundle_copy / "bf16/notes.txt").write_text("fine")
    write_manifest(bundle_copy, manifest)
    found = read_manifest(bundle_copy / MANIFEST_FILE).files
    assert found.keys() == manifest.files.keys() | {"bf16/notes.txt"}
    assert found["bf16/notes.txt"].bytes == 4


@pytest.mark.parametrize(
    "change",
    [
        put("softmax", "activation"),
        drop("variant"),
        drop("graphs", "scorer"),
        put({}, "graphs", "reranker"),
        drop("files", "tokenizer.json"),
        put("many", "tokenizer", "max_words"),
        put(2, "schema_version"),
        put({"fp8": {"graphs": {}}}, "precisions"),
        put(-0.1, "precisions", "int8", "logit_error"),
        put("small", "precisions", "int8", "logit_error"),
        put(True, "precisions", "int8", "logit_error"),
        put(1, "precisions", "int8", "rest_in_bfloat16"),
        put("fine", "files", "image.onnx", "sha256"),
        put(0, "logit_unit"),
        put(True, "logit_unit"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(feature_bundle: Path, change: Change) -> None:
    broken = document(feature_bundle)
    change(broken)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, manifest_schema())


def test_a_manifest_without_what_only_people_read(feature_bundle: Path) -> None:
    bare = document(feature_bundle)
    for name in ("sizes", "made_with", "training", "parity"):
        del bare[name]
    jsonschema.validate(bare, manifest_schema())
    assert Manifest.from_dict(bare).parity == ()


@pytest.mark.parametrize("error", [-0.1, "small", True, float("nan"), float("inf"), 1e39, 10**400])
def test_errors_of_logits_that_no_network_has_are_refused(feature_bundle: Path, error: object) -> None:
    broken = document(feature_bundle)
    broken["precisions"]["int8"]["logit_error"] = error
    with pytest.raises(ValueError, match=r"logit_error .*: expected a number from 0 to 1e.30, or null"):
        Manifest.from_dict(broken)


@pytest.mark.parametrize("graphs", [(), ("image",), ("image", "scorer")])
def test_a_first_pass_is_a_scorer_alone(feature_bundle: Path, graphs: tuple[str, ...]) -> None:
    """Another encoder's tensors would not be those that the items were encoded to."""
    broken = document(feature_bundle)
    own = {name: broken["graphs"][name] for name in graphs if name != "scorer"}
    kept = broken["precisions"]["int8"]["graphs"] if "scorer" in graphs else {}
    broken["precisions"]["int8"]["graphs"] = kept | own
    with pytest.raises(ValueError, match=r"int8 has the graphs .*, expected the scorer alone"):
        Manifest.from_dict(broken)
