"""Packs graphs that other programs made as a bundle, after the checks that an export makes.

The runtime encodes texts in padded batches and scores pairs in blocks. Whether graphs allow this is measured: every
pair of a few examples is scored alone first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Words

from camp_sdk.export.bundling.adopted import AdoptedGraphs
from camp_sdk.export.bundling.example_inputs import caption_example, picture_example
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.writer import check_output
from camp_sdk.export.network.backbones import OnnxVision
from camp_sdk.pictures import normalise
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import FEATURES, image_columns
from camp_sdk.runtime.encode import image_feeds
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import HeldFile, followed, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE
from camp_sdk.runtime.manifest import ACTIVATIONS, TOKENIZER_FILE, Manifest, PixelSpec, write_manifest
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.selftest import self_test
from camp_sdk.runtime.tokenizer import Tokenizer, Tokens
from camp_sdk.terminal import stderr

MADE_WITH = ("camp-sdk", "onnx", "onnxruntime", "tokenizers", "numpy")
IMAGES, REGIONS = 8, 36  # of the examples
CAPTION_WORDS = (1, 2, 3, 5, 8, 12, 17, 30)
ROLES = ("image", "text", "scorer", "explainer")
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
        adopted = AdoptedGraphs(aside, facts.name, tokenizer.vocabulary_size)
        for role in ROLES:
            if (source := getattr(parts, role)) is not None:
                adopted.add(role, source)
        pixels = pixels_of(adopted.add_vision(parts.vision), facts) if parts.vision else None
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
        captions = facts.captions or drawn_captions(_text_of(parts.tokenizer))
        examples = pairs_alone(aside, manifest, tokenizer.encode(captions)) | caption_example(tokenizer, captions)
        if pixels is not None:
            examples |= picture_example(pixels)
        if facts.activation == "sigmoid" and np.abs(examples["logits"]).max() <= 1:
            stderr.print("all logits of the examples lie in -1 to 1: if they are cosines, the activation is none")
        np.savez(aside / GOLDEN_FILE, **examples)  # type: ignore[arg-type]  # numpy expects bool
        write_manifest(aside, manifest)
        write_manifest(aside, replace(manifest, parity=(_compared(Bundle(aside), examples),)))
    return Bundle(output)


def grid_of(regions: int) -> tuple[int, int]:
    """The rows and columns of a square grid of regions; (0, 0) if their number is not a square."""
    side = math.isqrt(regions)
    return (side, side) if side * side == regions else (0, 0)


def pixels_of(vision: OnnxVision, facts: Facts) -> PixelSpec:
    """The pixels that a vision graph takes."""
    (height, width), (regions, _) = vision.size, vision.shape
    return PixelSpec(height, width, facts.pixel_mean, facts.pixel_std, grid_of(regions), facts.fit)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from None


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
