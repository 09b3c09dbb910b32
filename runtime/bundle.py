"""The bundle: a folder that is the whole deliverable of a trained model, and the contract its graphs keep.

Opening a bundle runs no code, unpickles nothing and follows no path out of its folder. Axis letters used in contracts:
I images, R regions, T texts, N words, D feature width; B, H, W for a batch of pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from camp_sdk.runtime.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST_BYTES_LIMIT = 16 << 20
MOST_PIXELS = 1024  # each way, of what a vision graph reads
ACTIVATIONS = ("sigmoid", "none")
REQUIRED_GRAPHS = ("image", "text", "scorer")
OPTIONAL_GRAPHS = ("explainer", "vision")
FITS = ("stretch", "letterbox", "crop")
GLOBAL_SUFFIX = ".global"
PRECISION_FOLDERS = {"float16": "fp16", "bfloat16": "bf16"}  # of the graphs that have their precision written into them
EXPORT_AGAIN = "export the bundle again, or copy it again from where it was made"


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one tensor; a letter in the shape is an axis of any size."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class FileEntry:
    """Size and SHA-256 (hexadecimal) a file must have."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of a bundle: its file (relative to the bundle) and its tensors, in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class PixelSpec:
    """What the `vision` graph expects: RGB scaled to 0..1, fitted to height x width, minus mean, divided by std.

    fit: "stretch" (each side scaled on its own; what a manifest without the key means), "letterbox" (the whole picture
    scaled to fit, centred, margins white) or "crop" (scaled to cover, the middle cut out).
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: tuple[int, int]
    fit: str = "stretch"


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. ``raw`` is the whole document, for what only people read (training, parity, versions).

    graphs are the float32 ones; lowered those that a lower precision, "float16" or "bfloat16", puts in their place.
    """

    variant: str
    activation: str
    graphs: dict[str, GraphSpec]
    lowered: dict[str, dict[str, GraphSpec]]
    files: dict[str, FileEntry]
    max_words: int
    pixels: PixelSpec | None
    raw: dict[str, Any]

    def graphs_in(self, precision: str) -> dict[str, GraphSpec]:
        """Every graph as a precision has it: its own where it has one, float32 otherwise. BundleError if it has none."""
        if precision != "float32" and precision not in self.lowered:
            option = PRECISION_FOLDERS.get(precision, precision)
            raise BundleError(f"this bundle has no {precision} graphs; export it with: to_onnx.py --precision {option}")
        return self.graphs | self.lowered.get(precision, {})

    @property
    def image_tensors(self) -> tuple[TensorSpec, ...]:
        """Everything kept of an encoded image: what the scorer reads, and `image.global`."""
        return self.graphs["image"].outputs

    @property
    def text_tensors(self) -> tuple[TensorSpec, ...]:
        """Everything kept of an encoded text: what the scorer reads, and `text.global`."""
        return self.graphs["text"].outputs

    @property
    def feature_width(self) -> int:
        """D, the width of a region's features."""
        return int(self.graphs["image"].inputs[0].shape[2])


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, read a mebibyte at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class Bundle:
    """A bundle on disk, checked: schema version, contract, and size and SHA-256 of every file it lists.

    Raises BundleError naming the file, what was found, what was expected and what to do.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / "manifest.json")
        for name, entry in self.manifest.files.items():
            self._check_file(name, entry)
        # Galleries remember which model made them: the graphs and the tokenizer, by content.
        listed = json.dumps(sorted((name, entry.sha256) for name, entry in self.manifest.files.items()))
        self.fingerprint = hashlib.sha256(listed.encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Bundle({str(self.folder)!r}, variant={self.manifest.variant!r})"

    def path(self, name: str) -> Path:
        """The path of a file the manifest lists; anything else is a BundleError."""
        if name not in self.manifest.files:
            raise BundleError(f"{self.folder}: {name!r} is not listed in manifest.json; {EXPORT_AGAIN}")
        return self.folder / name

    def _check_file(self, name: str, entry: FileEntry) -> None:
        path = self.folder / name
        if not path.is_file():
            raise BundleError(f"{path} is missing though manifest.json lists it; {EXPORT_AGAIN}")
        _check_inside(path, self.folder)
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(f"{path} has {size} bytes, manifest.json says {entry.bytes}; {EXPORT_AGAIN}")
        found = sha256_of(path)
        if found != entry.sha256:
            raise BundleError(f"{path} was altered: SHA-256 {found}, manifest.json says {entry.sha256}; {EXPORT_AGAIN}")


def _check_inside(path: Path, folder: Path | None = None) -> None:
    if not path.resolve().is_relative_to((folder or path.parent).resolve()):
        raise BundleError(f"{path} leads out of the bundle to {path.resolve()}; a bundle must hold its own files")


def _read_manifest(path: Path) -> Manifest:
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a bundle folder made by export/to_onnx.py")
    _check_inside(path)
    if path.stat().st_size > MANIFEST_BYTES_LIMIT:
        raise BundleError(f"{path} has {path.stat().st_size} bytes, more than a manifest can have; {EXPORT_AGAIN}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not a manifest ({type(error).__name__}: {error}); {EXPORT_AGAIN}") from None
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        what_to_do = "upgrade with: pip install --upgrade camp-sdk" if newer else EXPORT_AGAIN
        raise BundleError(
            f"{path} has schema version {version!r}, this camp-sdk reads version {SCHEMA_VERSION}; {what_to_do}"
        )
    try:
        return _parse(raw)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise BundleError(f"{path} breaks the contract ({type(error).__name__}: {error}); {EXPORT_AGAIN}") from None


def _parse(raw: dict[str, Any]) -> Manifest:
    graphs = {str(name): _parse_graph(graph) for name, graph in raw["graphs"].items()}
    missing = [name for name in REQUIRED_GRAPHS if name not in graphs]
    unknown = [name for name in graphs if name not in REQUIRED_GRAPHS + OPTIONAL_GRAPHS]
    if missing or unknown:
        raise ValueError(f"graphs missing: {missing}, unknown: {unknown}")
    files = {
        _inside(name): FileEntry(int(entry["bytes"]), str(entry["sha256"])) for name, entry in raw["files"].items()
    }
    lowered = _parse_lowered(raw["precisions"])
    every = [*graphs.values(), *(graph for own in lowered.values() for graph in own.values())]
    needed = [graph.file for graph in every] + ["tokenizer.json"]
    if unlisted := [name for name in needed if name not in files]:
        raise ValueError(f"files without a hash: {unlisted}")
    if raw["activation"] not in ACTIVATIONS:
        raise ValueError(f"activation {raw['activation']!r}, expected one of {ACTIVATIONS}")
    for own in ({}, *lowered.values()):
        _check_contract(graphs | own)
    return Manifest(
        variant=str(raw["variant"]),
        activation=raw["activation"],
        graphs=graphs,
        lowered=lowered,
        files=files,
        max_words=int(raw["tokenizer"]["max_words"]),
        pixels=parse_pixels(raw["pixels"]) if "vision" in graphs else None,
        raw=raw,
    )


def _parse_lowered(raw: Any) -> dict[str, dict[str, GraphSpec]]:
    if raw == ["float32"]:  # what bundles of before there was a second precision say
        return {}
    if unknown := raw.keys() - PRECISION_FOLDERS.keys():
        raise ValueError(f"precisions {sorted(unknown)}, expected {sorted(PRECISION_FOLDERS)}")
    return {
        precision: {str(name): _parse_graph(graph) for name, graph in entry["graphs"].items()}
        for precision, entry in raw.items()
    }


def _check_contract(graphs: dict[str, GraphSpec]) -> None:
    made = {spec.name: spec for side in ("image", "text") for spec in graphs[side].outputs}
    for spec in graphs["scorer"].inputs:
        narrowed = replace(spec, dtype="float32") if spec.dtype == "float16" else spec
        if made.get(spec.name) not in (spec, narrowed):
            raise ValueError(f"the scorer reads {spec}, the encoders make {made.get(spec.name)}")
    (features,) = graphs["image"].inputs
    if len(features.shape) != 3 or not isinstance(features.shape[2], int):
        raise ValueError(f"the image graph reads {features}, expected features [I, R, D] of a fixed width D")


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise ValueError(f"path {name!r} leaves the bundle")
    return name


def _parse_graph(raw: dict[str, Any]) -> GraphSpec:
    return GraphSpec(_inside(raw["file"]), _parse_tensors(raw["inputs"]), _parse_tensors(raw["outputs"]))


def _parse_tensors(raw: dict[str, Any]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, str(spec["dtype"]), tuple(spec["shape"])) for name, spec in raw.items())


def parse_pixels(raw: dict[str, Any]) -> PixelSpec:
    """A PixelSpec from plain values; KeyError, TypeError or ValueError if they are none."""
    mean, std = (tuple(float(v) for v in raw[key]) for key in ("mean", "std"))
    rows, columns = (int(v) for v in raw["grid"])
    height, width = int(raw["height"]), int(raw["width"])
    finite = all(math.isfinite(value) for value in mean + std)
    if not (
        len(mean) == len(std) == 3 and finite and 0 < height <= MOST_PIXELS and 0 < width <= MOST_PIXELS and all(std)
    ):
        raise ValueError(f"pixels {raw}")
    if (fit := raw.get("fit", "stretch")) not in FITS:
        raise ValueError(f"fit {fit!r}, expected one of {FITS}")
    return PixelSpec(height, width, mean, std, (rows, columns), fit)
