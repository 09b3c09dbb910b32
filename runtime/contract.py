"""The contract of a bundle's graphs: the names, types and shapes of their inputs and outputs.

Axis letters in shapes: I images, R regions, T texts, N words, D feature width; B, H, W for a batch of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from camp_sdk.runtime.messages import brief

GLOBAL_SUFFIX = ".global"
MIN_HALF_SHARE = 0.5  # of the products of a float16 graph: one with less would be slower, and no smaller
DTYPES = ("float32", "float16", "int64", "int8", "bool")
MAX_FILE_NAME = 1000
MAX_NAME, MAX_AXES, MAX_TENSORS, MAX_SIZE = 100, 8, 64, 1 << 24


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph.

    Args:
        name: the tensor's name, which is the same in the encoders and the scorer.
        dtype: numpy's name of the type.
        shape: for each axis its size, or a letter if the size varies.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{brief(self.name)} [{', '.join(map(str, self.shape))}] {self.dtype}"


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph.

    Args:
        file: the graph's path relative to the bundle.
        inputs: the graph's inputs, in order.
        outputs: the graph's outputs, in order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GraphSpec:
        """The graph that a manifest's entry describes.

        Args:
            raw: the entry, as `as_dict` returns it.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the entry is invalid.
        """
        return cls(inside(raw["file"]), _tensors(raw["inputs"]), _tensors(raw["outputs"]))

    def as_dict(self) -> dict[str, Any]:
        """The manifest's entry."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        entries = {
            side: {spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs}
            for side, specs in sides.items()
        }
        return {"file": self.file, **entries}


# The inputs and outputs that have a fixed meaning, by graph; None where they are a matter of the network.
ENDS: dict[str, tuple[set[str] | None, set[str] | None]] = {
    "text": ({"tokens", "lengths"}, None),
    "scorer": (None, {"logits"}),
    "vision": ({"pixels"}, {"features"}),
}
FEATURES = "features"  # the first input of the image graph
EXPLAINED = {"attention.to_words": ("I", "T", "R", "N"), "attention.to_regions": ("I", "T", "R", "N")}
GATES = {"gates.regions": ("I", "T", "R"), "gates.words": ("I", "T", "N")}
SIDES = {"image": "I", "text": "T"}


def check_graphs(graphs: Mapping[str, GraphSpec]) -> None:
    """Check that graphs fit each other: what one reads, another makes.

    Args:
        graphs: the graphs of one precision by name; image, text and scorer are there.

    Raises:
        ValueError: they do not fit.
    """
    for name, (reads, makes) in ENDS.items():
        for what, expected in (("reads", reads), ("makes", makes)):
            specs = () if name not in graphs else graphs[name].inputs if what == "reads" else graphs[name].outputs
            if name in graphs and expected is not None and (found := {spec.name for spec in specs}) != expected:
                raise ValueError(f"the {name} graph {what} {sorted(found)}, expected {sorted(expected)}")
    made = _made_by_sides(graphs)
    for reader in ("scorer", "explainer"):
        for spec in graphs[reader].inputs if reader in graphs else ():
            if spec.name not in made or _widened(made[spec.name]) != _widened(spec):
                raise ValueError(f"the {reader} reads {spec}, the encoders make {made.get(spec.name)}")
    _check_results(graphs)
    _check_vectors(made.get(f"image{GLOBAL_SUFFIX}"), made.get(f"text{GLOBAL_SUFFIX}"))


def _made_by_sides(graphs: Mapping[str, GraphSpec]) -> dict[str, TensorSpec]:
    """The tensors of both sides by name, checked."""
    made = {spec.name: spec for side in SIDES for spec in graphs[side].outputs}
    if len(made) < sum(len(graphs[side].outputs) for side in SIDES):
        raise ValueError("the image graph and the text graph make tensors of the same name")
    for side, letter in SIDES.items():
        if wrong := [spec for spec in graphs[side].outputs if spec.shape[:1] != (letter,)]:
            raise ValueError(f"the {side} graph makes {wrong[0]}, expected the first axis {letter}")
    if wrong := [spec for spec in graphs["text"].outputs if "N" in spec.shape[2:]]:
        raise ValueError(f"the text graph makes {wrong[0]}, expected the words N as the second axis")
    return made


def _widened(spec: TensorSpec) -> TensorSpec:
    """A tensor as it is stored: the runtime converts between both widths of floating-point numbers."""
    return replace(spec, dtype="float32") if spec.dtype == "float16" else spec


def image_columns(image: GraphSpec) -> dict[str, int]:
    """The width of each input of the image graph, in the order in which they are the columns of an image's features.

    `features` comes first, then the other inputs by name.

    Args:
        image: the image graph.
    """
    ordered = sorted(image.inputs, key=lambda spec: (spec.name != FEATURES, spec.name))
    return {spec.name: int(spec.shape[2]) for spec in ordered}


def _check_results(graphs: Mapping[str, GraphSpec]) -> None:
    (logits,) = graphs["scorer"].outputs
    if logits.shape != ("I", "T"):
        raise ValueError(f"the scorer makes {logits}, expected logits [I, T]")
    inputs = {spec.name: spec for spec in graphs["image"].inputs}
    if FEATURES not in inputs:
        raise ValueError(f"the image graph reads {sorted(inputs)}, expected features")
    for spec in inputs.values():
        if spec.dtype != "float32" or spec.shape[:2] != ("I", "R") or [type(s) for s in spec.shape[2:]] != [int]:
            raise ValueError(f"the image graph reads {spec}, expected float32 [I, R, D] of a fixed width D")
    if "explainer" in graphs:
        _check_explainer({spec.name: spec for spec in graphs["explainer"].outputs})


def _check_explainer(makes: Mapping[str, TensorSpec]) -> None:
    if missing := EXPLAINED.keys() - makes.keys():
        raise ValueError(f"the explainer does not make {sorted(missing)}")
    for name, axes in (EXPLAINED | GATES).items():
        if name in makes and makes[name].shape != axes:
            raise ValueError(f"the explainer makes {makes[name]}, expected [{', '.join(axes)}]")


def _check_vectors(image: TensorSpec | None, text: TensorSpec | None) -> None:
    """Check that there are global vectors of both sides or of none, and that they have a dot product."""
    if image is None and text is None:
        return
    found = [None if spec is None else (spec.dtype, spec.shape[1:]) for spec in (image, text)]
    if found[0] is None or found[0] != found[1] or [type(size) for size in found[0][1]] != [int]:
        raise ValueError(f"global vectors {image} and {text}, expected [I, d] and [T, d] of one fixed width, or none")


def _tensors(raw: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    if len(raw) > MAX_TENSORS:
        raise ValueError(f"{len(raw)} tensors, expected at most {MAX_TENSORS}")
    return tuple(_tensor(name, spec["dtype"], spec["shape"]) for name, spec in raw.items())


def _tensor(name: str, dtype: Any, shape: Any) -> TensorSpec:
    if not name.isprintable() or len(name) > MAX_NAME or dtype not in DTYPES:
        raise ValueError(f"tensor {name[:MAX_NAME]!r} of type {brief(dtype)}, expected one of {DTYPES}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(_is_axis(axis) for axis in shape):
        raise ValueError(f"{name} has the shape {brief(shape)}, expected letters and sizes from 1 to {MAX_SIZE}")
    return TensorSpec(name, dtype, tuple(shape))


def _is_axis(axis: Any) -> bool:
    if isinstance(axis, str):
        return axis.isprintable() and 0 < len(axis) <= MAX_NAME
    return type(axis) is int and 1 <= axis <= MAX_SIZE


def inside(name: str) -> str:
    """Return a path relative to a bundle.

    Args:
        name: the path, as manifest.json has it.

    Raises:
        ValueError: the path leaves the bundle.
    """
    path = PurePosixPath(name)
    if not name.isprintable() or len(name) > MAX_FILE_NAME:
        raise ValueError(f"path {brief(name)} is no plain name of at most {MAX_FILE_NAME} characters")
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise ValueError(f"path {brief(name)} leaves the bundle")
    return name
