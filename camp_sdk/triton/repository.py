"""A bundle's graphs as a model repository of Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec, TensorSpec, image_columns
from camp_sdk.runtime.encode import image_feeds
from camp_sdk.runtime.errors import BackendError, InputError
from camp_sdk.runtime.files import followed, is_empty, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE, Golden, read_golden
from camp_sdk.runtime.tensorrt.plans import check_plan, read_records
from camp_sdk.runtime.tokenizer import open_tokenizer
from camp_sdk.triton import config

ENCODERS = ("vision", "image", "text")
ENSEMBLE, RANK = "vision_image", "rank"
MODELS = (*ENCODERS, "scorer", "explainer", ENSEMBLE, RANK)
BLOCK = 128  # images that `rank` scores in a call
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TritonOptions:
    """How a repository is made.

    Args:
        precision: "float32" or "float16".
        plans: Whether to use TensorRT's engines of `camp build` in place of ONNX.
        device: Where instances run, "gpu" or "cpu".
        max_batch: The largest batch of the encoders.
    """

    precision: str = "float32"
    plans: bool = False
    device: str = "gpu"
    max_batch: int = 32


@dataclass(frozen=True)
class _Source:
    """A graph's file in the repository, and the most items that it takes at once."""

    content: bytes
    file: str
    backend: str
    most: int


def export_repository(bundle: Bundle, output: Path, options: TritonOptions) -> list[str]:
    """Write the repository; one that is there already is replaced.

    Args:
        bundle: The bundle.
        output: The repository's folder.
        options: How it is made.

    Returns:
        The names of its models.

    Raises:
        InputError: The folder holds something else, or an option is unknown.
        BundleError: The bundle has no graphs in this precision.
        BackendError: Engines are asked for and not all were built.
    """
    target = followed(output)
    _check(target, options)
    graphs = bundle.manifest.graphs_in(options.precision)
    with write_aside(target) as aside:
        maker = _Maker(bundle, graphs, options, aside)
        sources = {name: maker.add_graph(name) for name in graphs}
        if "vision" in graphs and len(graphs["image"].inputs) == 1:  # further inputs do not come from pictures
            maker.add_ensemble(min(sources[name].most for name in ("vision", "image")))
        maker.add_rank(min(BLOCK, sources["scorer"].most))
        return sorted(path.name for path in aside.iterdir())


def _check(target: Path, options: TritonOptions) -> None:
    if options.device not in config.KINDS:
        raise InputError(f"device {options.device!r}: expected gpu or cpu")
    if options.precision not in ("float32", "float16"):
        raise InputError(f"precision {options.precision!r}: expected float32 or float16")
    if options.plans and options.device == "cpu":
        raise InputError("TensorRT's engines run on GPUs only: leave out --plans, or take --device gpu")
    if target.exists() and not is_empty(target):
        ours = target.is_dir() and (target / RANK / "config.pbtxt").is_file()
        if not ours or {path.name for path in target.iterdir()} - set(MODELS):
            raise InputError(f"{target} exists and is not a repository of camp export-triton: name another folder")


class _Maker:
    """Writes the models of one repository."""

    def __init__(self, bundle: Bundle, graphs: Mapping[str, GraphSpec], options: TritonOptions, folder: Path) -> None:
        self._bundle, self._graphs, self._options, self._folder = bundle, graphs, options, folder
        self._longest = open_tokenizer(bundle).max_tokens
        self._golden = read_golden(bundle) if GOLDEN_FILE in bundle.manifest.files else None

    def add_graph(self, name: str) -> _Source:
        source, graph = self._source(name), self._graphs[name]
        batched = name in ENCODERS
        sizes = {"N": self._longest} if name == "text" else {}
        text = config.head_text(name, source.backend, source.most if batched else 0)
        text += config.tensors_text("input", graph.inputs, batched, sizes)
        text += config.tensors_text("output", graph.outputs, batched, sizes)
        text += config.group_text(self._options.device) + (config.batching_text() if batched else "")
        self._write(name, text + self._warm_up(name), source.file, source.content)
        return source

    def add_ensemble(self, max_batch: int) -> None:
        vision, image = self._graphs["vision"], self._graphs["image"]
        steps = [
            (name, _names(graph.inputs), _names(graph.outputs))
            for name, graph in (("vision", vision), ("image", image))
        ]
        text = config.ensemble_text(ENSEMBLE, max_batch, steps)
        text += config.tensors_text("input", vision.inputs, True, {})
        text += config.tensors_text("output", image.outputs, True, {})
        self._write(ENSEMBLE, text)

    def add_rank(self, block: int) -> None:
        made = {side: {spec.name: spec for spec in self._graphs[side].outputs} for side in ("image", "text")}
        read = {spec.name: spec.dtype for spec in self._graphs["scorer"].inputs}
        of_side = {side: {name: dtype for name, dtype in read.items() if name in specs} for side, specs in made.items()}
        inputs = [made[side][name] for side, types in of_side.items() for name in types]
        outputs = [
            TensorSpec("indices", "int64", ("K",)),
            *(TensorSpec(n, "float32", ("K",)) for n in ("logits", "scores")),
        ]
        text = config.head_text(RANK, "python", 0)
        text += config.tensors_text("input", [*inputs, TensorSpec("top_k", "int64", (1,))], False, {"T": 1})
        text += config.tensors_text("output", outputs, False, {}) + config.group_text("cpu")
        values = {"activation": self._bundle.manifest.activation, "block": str(block)}
        text += config.parameters_text(
            values | {"images": json.dumps(of_side["image"]), "texts": json.dumps(of_side["text"])}
        )
        self._write(RANK, text, "model.py", (Path(__file__).parent / "rank_model.py").read_bytes())

    def _write(self, name: str, text: str, file: str | None = None, content: bytes = b"") -> None:
        version = self._folder / name / "1"  # an ensemble has an empty folder of its version
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(text, encoding="utf-8")
        if file is not None:
            (version / file).write_bytes(content)

    def _source(self, name: str) -> _Source:
        graph, most = self._graphs[name], self._options.max_batch if name in ENCODERS else BLOCK
        if not self._options.plans:
            return _Source(self._bundle.file(graph.file).read(), "model.onnx", "onnxruntime", most)
        return _plan(self._bundle, name, graph, most, self._longest)

    def _warm_up(self, name: str) -> str:
        """The warm-up's lines; its files are written."""
        if self._golden is None:
            return ""
        if name in ENCODERS:
            return self._warm_up_of_examples(name, self._golden)
        sizes = {"I": 1, "T": 1, "N": self._longest, "R": self._golden.features.shape[1]}
        inputs = self._graphs[name].inputs
        if any(isinstance(axis, str) and axis not in sizes for spec in inputs for axis in spec.shape):
            return ""
        dims = [tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape) for spec in inputs]
        return config.warmup_text([config.WarmInput(s, d, None) for s, d in zip(inputs, dims, strict=True)])

    def _warm_up_of_examples(self, name: str, golden: Golden) -> str:
        examples, given = _examples(name, golden, self._graphs[name], self._longest), []
        folder = self._folder / name / "warmup"
        folder.mkdir(parents=True)
        for number, spec in enumerate(self._graphs[name].inputs):
            array, file = examples[spec.name][0], f"input{number}"
            (folder / file).write_bytes(np.ascontiguousarray(array, spec.dtype).tobytes())
            given.append(config.WarmInput(spec, array.shape or (1,), file))
        return config.warmup_text(given)


def _examples(name: str, golden: Golden, graph: GraphSpec, longest: int) -> Arrays:
    if name == "vision":
        return {"pixels": np.asarray(golden.pixels)}
    if name == "image":
        return dict(image_feeds(golden.features, image_columns(graph)))
    tokens = np.zeros((len(golden.tokens), longest), np.int64)
    width = min(longest, golden.tokens.shape[1])
    tokens[:, :width] = golden.tokens[:, :width]
    return {"tokens": tokens, "lengths": np.minimum(golden.lengths, longest)}


def _names(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs]


def _plan(bundle: Bundle, name: str, graph: GraphSpec, most: int, longest: int) -> _Source:
    """The newest engine of TensorRT that was built for a graph.

    Raises:
        BackendError: There is none, or it does not take the longest text.
    """
    sha256 = bundle.manifest.files[graph.file].sha256
    found = [
        (record.built_at, folder, record)
        for folder, record in read_records(bundle.folder)[0]
        if (record.library, record.graph, record.graph_sha256) == ("tensorrt", name, sha256)
    ]
    if not found:
        raise BackendError(f"no TensorRT engine was built for {name}: run camp build, or leave out --plans")
    _, folder, record = max(found, key=lambda one: one[0])
    largest = {spec.name: record.profile[spec.name][2] for spec in graph.inputs}
    if name == "text" and largest["tokens"][1] < longest:
        raise BackendError(
            f"the engine of text takes {largest['tokens'][1]} words, a text has up to {longest}: "
            f"run camp build --graph text --max-words {longest}"
        )
    limit = min(shape[0] for shape in largest.values())
    return _Source(check_plan(folder, record).read(), "model.plan", "tensorrt", min(most, limit))
