"""Packs graphs that other programs made as a bundle, after the checks that an export makes.

Nothing is known of these graphs but their files. Which axes vary is measured: each graph is run on inputs of two
different sizes. The runtime encodes texts in padded batches and scores pairs in blocks; whether a graph allows this is
measured, too, by scoring every pair alone first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tokenizers import Tokenizer as Words

from camp_sdk.export.bundling.onnx_files import DYNAMIC, Axes, ExportError, GraphAxes, check_graph
from camp_sdk.export.bundling.writer import check_output
from camp_sdk.export.network.backbones import read_vision
from camp_sdk.pictures import normalise
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import FEATURES, GraphSpec, check_graphs, image_columns
from camp_sdk.runtime.encode import image_feeds
from camp_sdk.runtime.engines.base import Arrays, Engine, Interface
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.errors import BackendError, BundleError, InputError
from camp_sdk.runtime.files import HeldFile, followed, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE
from camp_sdk.runtime.manifest import ACTIVATIONS, TOKENIZER_FILE, Manifest, PixelSpec, write_manifest
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.selftest import self_test
from camp_sdk.runtime.tokenizer import Tokenizer, Tokens

MADE_WITH = ("camp-sdk", "onnx", "onnxruntime", "tokenizers", "numpy")
IMAGES, REGIONS = 8, 36  # of the examples
CAPTION_WORDS = (1, 2, 3, 5, 8, 12, 17, 30)
# Two sizes of the axes that vary. An axis of an output that has the first size and then the second varies with it.
PROBES = ({"I": 3, "R": 7, "T": 5, "N": 11}, {"I": 4, "R": 6, "T": 2, "N": 9})
ROLES = ("image", "text", "scorer", "explainer")
TEXT_AXES = {"tokens": ("T", "N"), "lengths": ("T",)}
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Parts:
    """The files of a bundle that other programs made.

    Args:
        image: float32 features [I, R, D], and further inputs [I, R, width], to the images' tensors.
        text: tokens [T, N] int64 and lengths [T] int64 to the texts' tensors.
        scorer: tensors of both, by the names that the first two give them, to logits [I, T].
        tokenizer: tokenizer.json in the format of Hugging Face's `tokenizers`.
        vision: normalised pixels [B, 3, H, W] to features [B, R, D]; None for a model of ready features.
        explainer: tensors of both sides to attention and gates; None for none.
    """

    image: Path
    text: Path
    scorer: Path
    tokenizer: Path
    vision: Path | None = None
    explainer: Path | None = None


@dataclass(frozen=True)
class Facts:
    """What the files do not say.

    Args:
        name: the network's name.
        activation: the function from logits to scores, "sigmoid" or "none".
        fit: how pictures are fitted to the size of the vision graph, "stretch", "letterbox" or "crop".
        pixel_mean: the mean of each channel of pixels in 0..1; by default that of ImageNet.
        pixel_std: the standard deviation of each channel, likewise.
        captions: example texts; by default they are drawn from the tokenizer's vocabulary.
    """

    name: str = "packed"
    activation: str = "sigmoid"
    fit: str = "letterbox"
    pixel_mean: Channels = (0.485, 0.456, 0.406)
    pixel_std: Channels = (0.229, 0.224, 0.225)
    captions: Sequence[str] = ()


def pack(parts: Parts, output: Path, facts: Facts | None = None) -> Bundle:
    """Pack graphs that other programs made as a bundle.

    Args:
        parts: the files.
        output: the bundle's folder; an older bundle there is replaced once the new one is complete.
        facts: what the files do not say.

    Returns:
        The new bundle, opened.

    Raises:
        InputError: ``output`` holds something other than an older bundle.
        BundleError: a file cannot be read, or the tokenizer is not one that the runtime accepts.
        ExportError: a graph has other inputs or outputs than expected, an axis that does not vary, or gives other
            logits for a pair in a batch than alone. After any error, ``output`` is unchanged.
    """
    facts = facts or Facts()
    if facts.activation not in ACTIVATIONS:
        raise InputError(f"activation {brief(facts.activation)}: expected one of {', '.join(ACTIVATIONS)}")
    check_output(output)
    tokenizer = Tokenizer(_text_of(parts.tokenizer))
    with write_aside(followed(output)) as aside:
        aside.mkdir()
        adopted = _Adopted(aside, facts.name, tokenizer.vocabulary_size)
        for role in ROLES:
            if (source := getattr(parts, role)) is not None:
                adopted.add(role, source)
        pixels = adopted.add_vision(parts.vision, facts) if parts.vision else None
        adopted.check()
        (aside / TOKENIZER_FILE).write_text(_text_of(parts.tokenizer), encoding="utf-8")
        manifest = Manifest(
            variant=facts.name,
            activation=facts.activation,
            graphs=adopted.graphs,
            max_words=tokenizer.max_words,
            vocabulary=tokenizer.vocabulary_size,
            pixels=pixels,
            made_with={name: version(name) for name in MADE_WITH},
        )
        tokens = tokenizer.encode(facts.captions or drawn_captions(_text_of(parts.tokenizer)))
        examples = pairs_alone(aside, manifest, tokens)
        np.savez(aside / GOLDEN_FILE, **examples)  # type: ignore[arg-type]  # numpy expects bool
        write_manifest(aside, manifest)
        write_manifest(aside, replace(manifest, parity=(_compared(Bundle(aside), examples),)))
    return Bundle(output)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from None


def grid_of(regions: int) -> tuple[int, int]:
    """The rows and columns of a square grid of regions; (0, 0) if their number is not a square."""
    side = math.isqrt(regions)
    return (side, side) if side * side == regions else (0, 0)


class _Adopted:
    """The graphs of a bundle, copied into its folder with their axes named.

    Args:
        folder: the bundle's folder.
        network: the network's name.
        vocabulary: the number of tokens.
    """

    def __init__(self, folder: Path, network: str, vocabulary: int) -> None:
        self.folder, self.network, self.vocabulary = folder, network, vocabulary
        self.graphs: dict[str, GraphSpec] = {}
        self._axes: dict[str, Axes] = dict(TEXT_AXES)  # of every tensor that is known
        self._made: tuple[Arrays, Arrays] = ({}, {})  # what the encoders make of inputs of the two sizes

    def add(self, role: str, source: Path) -> None:
        """Copy a graph, and measure the axes of what it makes."""
        file = self.folder / f"{role}.onnx"
        model = _loaded(source)
        onnx.save(model, file)
        with _explained(role, source, file), OnnxRuntimeEngine(HeldFile(file)) as engine:
            reads, _ = engine.interface()
            inputs = self._inputs(role, source, reads)
            for sizes, made in zip(PROBES, self._made, strict=True):
                made |= engine.run(_feeds(reads, inputs, sizes, made, self.vocabulary))
        outputs = {value.name: self._measured(role, value.name) for value in model.graph.output}
        self._axes |= outputs
        self._write(model, GraphAxes(role, self.network, inputs, outputs))

    def add_vision(self, source: Path, facts: Facts) -> PixelSpec:
        """Copy a vision graph, and return the pixels that it takes."""
        vision = read_vision(source)
        axes = {"pixels": ("B", "c", "h", "w")}, {FEATURES: ("B", "r", "d")}
        self._write(onnx.load_from_string(vision.graph), GraphAxes("vision", self.network, *axes))
        (height, width), (regions, _) = vision.size, vision.shape
        return PixelSpec(height, width, facts.pixel_mean, facts.pixel_std, grid_of(regions), facts.fit)

    def check(self) -> None:
        """Raise ExportError unless the graphs fit each other."""
        try:
            check_graphs(self.graphs)
        except ValueError as error:
            raise ExportError(f"the graphs do not make a bundle: {error}") from None

    def _inputs(self, role: str, source: Path, reads: Interface) -> dict[str, Axes]:
        """The axes of a graph's inputs: those of the contract, or of the tensors that the encoders make."""
        if role == "image":
            return {name: _region_axes(source, name, shape) for name, (_, shape) in reads.items()}
        known = TEXT_AXES if role == "text" else self._axes
        if strange := [name for name in reads if name not in known]:
            raise ExportError(f"{source} reads {', '.join(strange)}: expected, as {role}, some of {', '.join(known)}")
        return {name: known[name] for name in reads}

    def _measured(self, role: str, name: str) -> Axes:
        """The axes of an output, from its sizes for inputs of two sizes."""
        first, second = (made[name].shape for made in self._made)
        if len(first) != len(second):
            raise ExportError(
                f"the {role} graph makes {name} {first} and {second}: expected as many axes for any input"
            )
        return tuple(_letter(role, name, pair) for pair in zip(first, second, strict=True))

    def _write(self, model: onnx.ModelProto, axes: GraphAxes) -> None:
        file = self.folder / f"{axes.role}.onnx"
        _set_axes(model, axes)
        onnx.save(model, file)
        inputs, outputs = check_graph(file, axes)
        self.graphs[axes.role] = GraphSpec(file.name, tuple(inputs), tuple(outputs))


def _loaded(source: Path) -> onnx.ModelProto:
    try:
        return onnx.load(source)  # with weights from a separate file, if there is one
    except Exception as error:  # protobuf and onnx raise types of their own
        raise BundleError(f"{source} cannot be read as an ONNX graph: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _explained(role: str, source: Path, copy: Path) -> Iterator[None]:
    """Say which file it is that does not run, and what is expected of it."""
    try:
        yield
    except (BackendError, BundleError) as error:
        reason = " ".join(str(error).replace(str(copy), "it").split())[:400]
        sizes = " and ".join(str(tuple(probe.values())) for probe in PROBES)
        raise ExportError(
            f"{source} does not run, as {role}, for I, R, T, N of {sizes}, expected axes that vary: {reason}"
        ) from None


def _region_axes(source: Path, name: str, shape: Sequence[Any]) -> Axes:
    if len(shape) != 3 or not isinstance(shape[2], int):
        raise ExportError(f"{source} reads {name} {tuple(shape)}: expected, as image, [I, R, D] of a fixed width D")
    return "I", "R", str(shape[2])


def _feeds(
    reads: Interface, axes: Mapping[str, Axes], sizes: Mapping[str, int], made: Arrays, vocabulary: int
) -> Arrays:
    """A value of every input: what the encoders made, words, or random numbers."""
    rng = np.random.default_rng(0)
    drawn = {
        "tokens": rng.integers(0, vocabulary, (sizes["T"], sizes["N"])),
        "lengths": np.linspace(2, sizes["N"], sizes["T"]).astype(np.int64),
    }

    def value(name: str) -> NDArray[Any]:
        size = tuple(sizes.get(axis) or int(axis) for axis in axes[name])
        return rng.random(size).astype(reads[name][0])

    return {name: made[name] if name in made else drawn[name] if name in drawn else value(name) for name in reads}


def _letter(role: str, name: str, found: tuple[int, int]) -> str:
    for letter in PROBES[0]:
        if found == (PROBES[0][letter], PROBES[1][letter]):
            return letter
    if found[0] != found[1]:
        sizes = [dict(probe) for probe in PROBES]
        raise ExportError(f"the {role} graph makes an axis of {name} {found[0]} and {found[1]} long for {sizes}")
    return str(found[0])


def _set_axes(model: onnx.ModelProto, axes: GraphAxes) -> None:
    """Write the axes of inputs and outputs into a graph; what it says of the values between is left out."""
    del model.graph.value_info[:]
    for values, known in ((model.graph.input, axes.inputs), (model.graph.output, axes.outputs)):
        for value in values:
            if len(value.type.tensor_type.shape.dim) != len(known[value.name]):
                del value.type.tensor_type.shape.dim[:]
                value.type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in known[value.name])
            for dim, axis in zip(value.type.tensor_type.shape.dim, known[value.name], strict=True):
                if axis in DYNAMIC:
                    dim.dim_param = axis
                elif axis.isdecimal():
                    dim.dim_value = int(axis)


def drawn_captions(tokenizer: str) -> list[str]:
    """Captions of one to thirty words of a tokenizer's vocabulary, the same at each call.

    Args:
        tokenizer: the text of tokenizer.json.
    """
    words = sorted(word for word in Words.from_str(tokenizer).get_vocab() if word.isascii() and word.isalpha())
    if not words:
        raise BundleError("the tokenizer has no word of plain letters to draw examples from: give captions")
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, count)) for count in CAPTION_WORDS]


def pairs_alone(folder: Path, manifest: Manifest, tokens: Tokens) -> Arrays:
    """Examples for golden.npz: random images, some texts, and the logits of each pair, computed alone.

    Args:
        folder: the bundle's folder, with its graphs.
        manifest: the bundle's manifest.
        tokens: the texts.
    """
    rng = np.random.default_rng(0)
    examples: Arrays = {"tokens": tokens.ids, "lengths": tokens.lengths}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(OnnxRuntimeEngine(HeldFile(folder / graph.file)))
            for name, graph in manifest.graphs.items()
        }
        if manifest.pixels is None:
            features = rng.random((IMAGES, REGIONS, manifest.feature_width), dtype=np.float32)
        else:
            size = (IMAGES, manifest.pixels.height, manifest.pixels.width, 3)
            examples["pixels"] = normalise(rng.integers(0, 256, size, dtype=np.uint8), manifest.pixels)
            features = np.concatenate(
                [engines["vision"].run({"pixels": p[None]})[FEATURES] for p in examples["pixels"]]
            )
        columns = image_columns(manifest.graphs["image"])
        images = [engines["image"].run(image_feeds(row[None], columns)) for row in features]
        texts = [
            engines["text"].run({"tokens": ids[None, :length], "lengths": np.array([length])})
            for ids, length in zip(tokens.ids, tokens.lengths, strict=True)
        ]
        read = [spec.name for spec in manifest.graphs["scorer"].inputs]
        rows = [[_logit(engines["scorer"], read, {**image, **text}) for text in texts] for image in images]
    return examples | {FEATURES: features, "logits": np.array(rows, np.float32)}


def _logit(scorer: Engine, read: Sequence[str], tensors: Arrays) -> float:
    return float(scorer.run({name: tensors[name] for name in read})["logits"][0, 0])


def _compared(bundle: Bundle, examples: Arrays) -> dict[str, Any]:
    """Compare the logits in padded batches and blocks with those of each pair alone; returns the manifest's figures."""
    found = self_test(bundle, "onnxruntime", "float32")
    if not found.passed:
        raise ExportError(
            f"the graphs give other logits for pairs in a batch than for each pair alone: {found.figures}; items of a "
            "batch, padding beyond `lengths` and the other texts of a block must not change a score"
        )
    images, texts = examples["logits"].shape
    return {"name": "in blocks and alone", "images": images, "texts": texts, "max_logit_error": found.max_logit_error}
