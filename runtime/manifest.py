"""manifest.json of a bundle: one schema, read and written by the same types."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from camp_sdk.runtime.contract import GLOBAL_SUFFIX, GraphSpec, TensorSpec, check_graphs, image_columns, inside
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import sha256_of
from camp_sdk.runtime.lowered import FIRST_PASSES, PRECISION_FOLDERS, LoweredGraphs
from camp_sdk.runtime.manifest_values import FirstStage, hash_from, stop_words_from, unit_from, vocabulary_from
from camp_sdk.runtime.messages import brief

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
SCHEMA_VERSION = 1
BYTES_LIMIT = 16 << 20
MAX_PIXELS = 1024  # the largest height and width of a vision graph's input
ACTIVATIONS = ("sigmoid", "none")
REQUIRED_GRAPHS = ("image", "text", "scorer")
OPTIONAL_GRAPHS = ("explainer", "vision")
FITS = ("stretch", "letterbox", "crop")
RESAMPLES = ("fast", "bilinear", "bicubic")
EXPORT_AGAIN = "export the bundle again, or copy it again from where it was made"


@dataclass(frozen=True)
class FileEntry:
    """The expected content of a file of the bundle.

    Args:
        bytes: size of the file.
        sha256: SHA-256 of the file, in hexadecimal.
    """

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """The entry for the current content of a file."""
        return cls(path.stat().st_size, sha256_of(path))


@dataclass(frozen=True)
class PixelSpec:
    """The input of the `vision` graph: RGB scaled to 0..1, fitted to a size, minus mean, divided by std.

    Args:
        height: in pixels.
        width: in pixels.
        mean: the mean of each channel.
        std: the standard deviation of each channel.
        grid: rows and columns of the regions; (0, 0) if they do not tile the picture.
        fit: "stretch" (height and width are scaled independently; the default if the key is missing), "letterbox" (the
            whole picture is scaled to fit and centred on white) or "crop" (the picture is scaled to cover the size, and
            its middle is used).
        resample: "fast" (bilinear; a JPEG may be decoded at a part of its size; the default if the key is missing),
            "bilinear" or "bicubic" (exactly as the processors of pretrained models do: the picture is decoded whole,
            and with "crop", scaled to whole pixels before the middle is cut out).
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    grid: tuple[int, int]
    fit: str = "stretch"
    resample: str = "fast"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> PixelSpec:
        """A PixelSpec from plain values.

        Args:
            raw: the values by name, as `as_dict` returns them.

        Raises:
            KeyError, TypeError, ValueError: the values are not a valid PixelSpec.
        """
        (r, g, b), (r_std, g_std, b_std) = ([float(v) for v in raw[key]] for key in ("mean", "std"))
        mean, std = (r, g, b), (r_std, g_std, b_std)
        rows, columns = (int(v) for v in raw["grid"])
        height, width = int(raw["height"]), int(raw["width"])
        finite = all(math.isfinite(value) for value in mean + std)
        fits = all(0 < size <= MAX_PIXELS for size in (height, width))
        fits = fits and ((rows, columns) == (0, 0) or all(0 < size <= MAX_PIXELS for size in (rows, columns)))
        if not (finite and all(std) and fits):
            shown = brief([raw[key] for key in ("height", "width", "grid", "mean", "std")], 3)
            raise ValueError(f"pixels {shown}, expected finite numbers, and sizes from 1 to {MAX_PIXELS}")
        if (fit := raw.get("fit", "stretch")) not in FITS:
            raise ValueError(f"fit {brief(fit)}, expected one of {FITS}")
        if (resample := raw.get("resample", "fast")) not in RESAMPLES:
            raise ValueError(f"resample {brief(resample)}, expected one of {RESAMPLES}")
        return cls(height, width, mean, std, (rows, columns), fit, resample)

    def as_dict(self) -> dict[str, Any]:
        """The manifest's entry, with lists for tuples, as in JSON and checkpoints."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. Fields "for people" are not used by the runtime.

    Args:
        variant: the network's name, for people.
        activation: the function that turns logits into scores, "sigmoid" or "none".
        graphs: the float32 graphs by name.
        max_words: the most words of a text, as the tokenizer truncates it; markers are not counted.
        stop_words: tokens that occur in more than half of the training captions; empty in older bundles.
        vocabulary: the number of tokens that the text graph knows; None in older bundles.
        files: every file of the bundle except the manifest, by path relative to the bundle.
        pixels: the input of the vision graph; None without one.
        precisions: the graphs of lower precisions, by name.
        sizes: the network's configuration, for people.
        made_with: versions of the packages that made the bundle, for people.
        training: how the network was trained and the scores it reached, for people.
        parity: figures of the export's comparison with PyTorch, for people.
        logit_unit: the factor, if logits are cosines times a factor: checks of lower precisions measure errors in it. 1
            (the default if the key is missing) otherwise.
        first_stage: the default shortlist, if the global vectors come from a pretrained network; None (the default if
            the key is missing) otherwise.
    """

    variant: str
    activation: str
    graphs: dict[str, GraphSpec]
    max_words: int
    files: dict[str, FileEntry] = field(default_factory=dict)
    stop_words: tuple[str, ...] = ()
    vocabulary: int | None = None
    pixels: PixelSpec | None = None
    precisions: dict[str, LoweredGraphs] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parity: tuple[dict[str, Any], ...] = ()
    logit_unit: float = 1.0
    first_stage: FirstStage | None = None

    @property
    def score_unit(self) -> float:
        """What an error of the scores is divided by: cosines times a factor are compared as cosines."""
        return self.logit_unit if self.activation == "none" else 1.0

    def graphs_in(self, precision: str) -> dict[str, GraphSpec]:
        """All graphs of a precision: its own versions where there are any, and the float32 ones otherwise.

        Args:
            precision: "float32", "float16", "bfloat16", "int8" or "float8".

        Raises:
            BundleError: the bundle has no graphs in this precision.
        """
        if precision != "float32" and precision not in self.precisions:
            option = PRECISION_FOLDERS.get(precision, precision)
            raise BundleError(
                f"this bundle has no {precision} graphs; export it with: camp export --precision {option}"
            )
        return self.graphs | (self.precisions[precision].graphs if precision in self.precisions else {})

    @property
    def image_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors stored for an encoded image: those that the scorer reads, and `image.global`."""
        return self.graphs["image"].outputs

    @property
    def text_tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors stored for an encoded text: those that the scorer reads, and `text.global`."""
        return self.graphs["text"].outputs

    @property
    def has_vectors(self) -> bool:
        """Whether both sides have a global vector."""
        return any(spec.name == f"image{GLOBAL_SUFFIX}" for spec in self.image_tensors)

    @property
    def feature_width(self) -> int:
        """D, the width of a region's features; further inputs of the image graph are the last of these columns."""
        return sum(image_columns(self.graphs["image"]).values())

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Manifest:
        """The manifest of a JSON document of this schema version, with its contract checked.

        Args:
            raw: the document, as `as_dict` returns it.

        Raises:
            KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError: the document breaks the
                contract.
        """
        graphs = {str(name): GraphSpec.from_dict(graph) for name, graph in raw["graphs"].items()}
        entries = raw["files"].items()
        files = {inside(name): FileEntry(int(entry["bytes"]), hash_from(entry["sha256"])) for name, entry in entries}
        manifest = cls(
            variant=str(raw["variant"]),
            activation=raw["activation"],
            graphs=graphs,
            max_words=int(raw["tokenizer"]["max_words"]),
            files=files,
            stop_words=stop_words_from(raw["tokenizer"].get("stop_words", [])),
            vocabulary=vocabulary_from(raw["tokenizer"].get("vocabulary")),
            pixels=PixelSpec.from_dict(raw["pixels"]) if "vision" in graphs else None,
            precisions=_precisions(raw["precisions"]),
            **{name: dict(raw.get(name) or {}) for name in ("sizes", "made_with", "training")},
            parity=tuple(dict(check) for check in raw.get("parity") or ()),
            logit_unit=unit_from(raw.get("logit_unit", 1.0)),
            first_stage=FirstStage.from_dict(raw["first_stage"]) if raw.get("first_stage") else None,
        )
        _check(manifest)
        return manifest

    def as_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "schema_version": SCHEMA_VERSION,
            "variant": self.variant,
            "activation": self.activation,
            "graphs": {name: graph.as_dict() for name, graph in self.graphs.items()},
            "pixels": self.pixels.as_dict() if self.pixels else None,
            "precisions": {name: lowered.as_dict() for name, lowered in self.precisions.items()},
            "tokenizer": {
                "file": TOKENIZER_FILE,
                "max_words": self.max_words,
                "stop_words": list(self.stop_words),
                "vocabulary": self.vocabulary,
            },
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "sizes": self.sizes,
            "made_with": self.made_with,
            "training": self.training,
            "parity": list(self.parity),
            "logit_unit": self.logit_unit,
            "first_stage": asdict(self.first_stage) if self.first_stage else None,
        }


def read_manifest(path: Path) -> Manifest:
    """Read a manifest from a file.

    Args:
        path: the path of manifest.json.

    Raises:
        BundleError: the file is missing, too large, not a manifest, of another schema version, or breaks the contract.
    """
    if not path.is_file():
        raise BundleError(f"{path} not found: expected a bundle folder made by camp export")
    if path.stat().st_size > BYTES_LIMIT:
        raise BundleError(f"{path} has {path.stat().st_size} bytes, more than a manifest can have; {EXPORT_AGAIN}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        version = raw["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not a manifest ({type(error).__name__}: {error}); {EXPORT_AGAIN}") from None
    if type(version) is not int or version != SCHEMA_VERSION:
        newer = type(version) is int and version > SCHEMA_VERSION
        what_to_do = "upgrade camp-sdk" if newer else EXPORT_AGAIN
        raise BundleError(
            f"{path} has schema version {brief(version)}, this camp-sdk reads version {SCHEMA_VERSION}; {what_to_do}"
        )
    try:
        return Manifest.from_dict(raw)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise BundleError(f"{path} breaks the contract ({type(error).__name__}: {error}); {EXPORT_AGAIN}") from None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write a manifest into a bundle's folder, with the size and hash of every file in the folder.

    Args:
        folder: the bundle's folder, which already holds all other files.
        manifest: the manifest; its ``files`` are ignored.
    """
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: FileEntry.of(folder / name) for name in found if name != MANIFEST_FILE}
    text = json.dumps(replace(manifest, files=files).as_dict(), indent=2, sort_keys=True)
    (folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


def _check(manifest: Manifest) -> None:
    missing = [name for name in REQUIRED_GRAPHS if name not in manifest.graphs]
    unknown = [name for name in manifest.graphs if name not in REQUIRED_GRAPHS + OPTIONAL_GRAPHS]
    if missing or unknown:
        raise ValueError(f"graphs missing: {missing}, unknown: {brief(unknown)}")
    lowered = [own.graphs for own in manifest.precisions.values()]
    every = [graph for graphs in (manifest.graphs, *lowered) for graph in graphs.values()]
    if unlisted := [name for name in [*(graph.file for graph in every), TOKENIZER_FILE] if name not in manifest.files]:
        raise ValueError(f"files without a hash: {brief(unlisted)}")
    if manifest.activation not in ACTIVATIONS:
        raise ValueError(f"activation {brief(manifest.activation)}, expected one of {ACTIVATIONS}")
    for own in ({}, *lowered):
        check_graphs(manifest.graphs | own)
    for name in FIRST_PASSES:
        if name in manifest.precisions and manifest.precisions[name].graphs.keys() != {"scorer"}:
            raise ValueError(
                f"{name} has the graphs {sorted(manifest.precisions[name].graphs)}, expected the scorer alone"
            )
    if manifest.first_stage and not manifest.has_vectors:
        raise ValueError("first_stage: there are no global vectors")
    if manifest.pixels is not None:
        _check_vision(manifest.graphs["vision"], manifest.pixels, manifest.feature_width)


def _check_vision(vision: GraphSpec, pixels: PixelSpec, width: int) -> None:
    (reads,), (makes,) = vision.inputs, vision.outputs
    fits = reads.shape == ("B", 3, pixels.height, pixels.width)
    if not fits or len(makes.shape) != 3 or makes.shape[::2] != ("B", width):
        raise ValueError(
            f"the vision graph turns {reads} into {makes}, expected pixels [B, 3, {pixels.height}, {pixels.width}] and "
            f"features [B, R, {width}]"
        )


def _precisions(raw: Any) -> dict[str, LoweredGraphs]:
    if raw == ["float32"]:  # the form in bundles made before lower precisions existed
        return {}
    if unknown := raw.keys() - PRECISION_FOLDERS.keys():
        raise ValueError(f"precisions {brief(sorted(unknown))}, expected {sorted(PRECISION_FOLDERS)}")
    return {name: LoweredGraphs.from_dict(entry) for name, entry in raw.items()}
