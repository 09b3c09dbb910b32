"""Random models, small or of a published size, as their makers publish them: written by `transformers`, in folders."""

from __future__ import annotations

import io
import json
import math
import string
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

SIZE, PATCH, LONGEST = 32, 8, 24
EXIF_TURNED = 6  # the orientation of a phone held upright
WORDS = "a photo of the red blue dog cat circle star and two people on above left house don't 's".split()  # noqa: SIM905  # shorter than a list of strings


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, by the names of `transformers`.

    Args:
        text: those of the text tower.
        vision: those of the vision tower.
        layers: those that both towers have.
        projection: the width of CLIP's vectors.
        words: the number of tokens; 0 for as many as the words above need.
        scale: the factor of the cosines.
        gain: by which matrices are larger than those that training starts from.
    """

    text: dict[str, Any]
    vision: dict[str, Any]
    layers: dict[str, Any]
    projection: int
    words: int = 0
    scale: float = 14.3  # the one that training starts from
    gain: float = 4.0


FEW_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4}
TINY_CLIP = Shape(
    {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": LONGEST},
    {"hidden_size": 32, "intermediate_size": 48, "image_size": SIZE, "patch_size": PATCH},
    FEW_LAYERS,
    projection=20,
)
TINY_SIGLIP = Shape(
    {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": LONGEST, "projection_size": 32},
    {"hidden_size": 32, "intermediate_size": 40, "image_size": SIZE, "patch_size": PATCH},
    FEW_LAYERS,
    projection=32,
    scale=7.4,
)
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "image_size": 224}
CLIP_VIT_B_32 = Shape(
    {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77},
    BASE | {"patch_size": 32},
    {"num_hidden_layers": 12},
    projection=512,
    words=49408,
    scale=100.0,
)
SIGLIP_B_16_224 = Shape(
    {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_size": 768}
    | {"max_position_embeddings": 64},
    BASE | {"patch_size": 16},
    {"num_hidden_layers": 12},
    projection=768,
    words=32000,
    scale=117.0,
    gain=1.0,  # its matrices are large at the start: float32 would lose four digits in twelve layers of larger ones
)


def further_pairs(known: Collection[str], letters: list[str], count: int) -> list[tuple[str, str]]:
    """Pairs of letters that are no words yet, until there are enough tokens for a published size."""
    pairs = [pair for pair in product(letters, letters) if "".join(pair) not in known]
    return pairs[: max(0, count - len(known))]


def clip_vocabulary(words: int = 0) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Every byte, within a word and at its end, and the words above, grown letter by letter; the markers come last."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = word[0]
        for place, letter in enumerate(word[1:], 2):
            right = letter if place < len(word) else f"{letter}</w>"
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            pieces[left] = None
    more = further_pairs(pieces, letters, words - 2)
    merges += more
    names = [*pieces, *map("".join, more), "<|startoftext|>", "<|endoftext|>"]
    return {name: index for index, name in enumerate(names)}, merges


def write_clip(folder: Path, shape: Shape = TINY_CLIP) -> Path:
    """A CLIP: config.json, model.safetensors, preprocessor_config.json and tokenizer.json.

    Args:
        folder: where to write it.
        shape: its sizes.
    """
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    vocabulary, merges = clip_vocabulary(shape.words)
    end, layers = vocabulary["<|endoftext|>"], shape.layers | {"hidden_act": "quick_gelu"}
    markers = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {"vocab_size": len(vocabulary), **markers, **layers, **shape.text}
    torch.manual_seed(3)
    model = CLIPModel(
        CLIPConfig(text_config=text, vision_config=layers | shape.vision, projection_dim=shape.projection)
    )
    spread(model, shape)
    model.save_pretrained(folder)
    longest, size = shape.text["max_position_embeddings"], shape.vision["image_size"]
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=longest).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder
    )
    return folder


def gemma_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Letters, every byte for all others, and the words above, grown letter by letter; the markers come first."""
    pieces = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))])
    pieces |= dict.fromkeys(["\u2581", *string.ascii_lowercase, *string.digits, *".,'", "\u00e9", "\u6771"])
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "\u2581"
        for letter in word:
            if (left, letter) not in merges:
                merges.append((left, letter))
            left += letter
            pieces[left] = None
    return {name: index for index, name in enumerate(pieces)}, merges


def scored_pieces(count: int = 0) -> Tokenizer:
    """The rules of SigLIP's tokenizer: lower case, no punctuation, pieces with scores, and an end marker."""
    letters = [*string.ascii_lowercase, *string.digits, "\u00e9", "\u6771"]
    words = [f"\u2581{word}" for word in WORDS if word.isalpha()]
    names = dict.fromkeys(["<pad>", "</s>", "<unk>", "\u2581", *words, "ing", "s", *letters])
    han = [chr(code) for code in range(0x4E00, 0x4F00)]
    names |= dict.fromkeys(map("".join, further_pairs(names, han, count)))
    # Short pieces are less likely than long ones: scores are logarithms.
    tokenizer = Tokenizer(Unigram([(name, -2.0 - 8 / len(name)) for name in names], unk_id=2))
    punctuation = Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")
    steps = [normalizers.Lowercase(), normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(r"\s+"), " ")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def save_scored_pieces(folder: Path, shape: Shape) -> int:
    """Write the tokenizer of SigLIP; its padding is the end marker, on the right."""
    from transformers import PreTrainedTokenizerFast

    inner, longest = scored_pieces(shape.words), shape.text["max_position_embeddings"]
    names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "padding_side": "right"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **names).save_pretrained(folder)
    return int(inner.get_vocab_size())


def save_byte_pairs(folder: Path, shape: Shape) -> int:
    """Write the tokenizer of SigLIP 2; the padding is on the left, as is usual for its class."""
    from transformers import Siglip2Tokenizer

    vocabulary, merges = gemma_vocabulary()
    markers = {"add_bos_token": False, "add_eos_token": True}
    longest = shape.text["max_position_embeddings"]
    Siglip2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=longest, **markers).save_pretrained(folder)
    return len(vocabulary)


def write_siglip(folder: Path, second: bool, shape: Shape = TINY_SIGLIP) -> Path:
    """A SigLIP, or a SigLIP 2: another tokenizer, and bilinear pixels.

    Args:
        folder: where to write it.
        second: whether it is a SigLIP 2.
        shape: its sizes.
    """
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    words = (save_byte_pairs if second else save_scored_pieces)(folder, shape)
    text = {"vocab_size": words, "bos_token_id": 2, "eos_token_id": 1, **shape.layers, **shape.text}
    torch.manual_seed(5)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=shape.layers | shape.vision))
    spread(model, shape)
    model.save_pretrained(folder)
    size = dict.fromkeys(("height", "width"), shape.vision["image_size"])
    SiglipImageProcessorPil(size=size, resample=2 if second else 3).save_pretrained(folder)
    return folder


@torch.no_grad()
def spread(model: Any, shape: Shape) -> None:
    """Larger matrices and biases that are not zero, so that scores differ between pairs and every weight matters."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.mul_(shape.gain)
        elif name.endswith("bias"):
            weight.normal_(0, 0.1)
    model.logit_scale.fill_(math.log(shape.scale))
    if hasattr(model, "logit_bias"):
        model.logit_bias.fill_(-1.5)


def settings(folder: Path, name: str) -> dict[str, Any]:
    """The content of one of a model's JSON files."""
    raw: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return raw


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise of every frequency: nothing hides a wrong kernel, rounding or cut."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = EXIF_TURNED
    return encoded(picture(90, 61), "JPEG", exif=exif)


def clear() -> bytes:
    image = picture(50, 70).convert("RGBA")
    image.putalpha(picture(50, 70, 1).convert("L"))
    return encoded(image, "PNG")


PICTURES: dict[str, Callable[[], bytes]] = {
    "a large JPEG": lambda: encoded(picture(400, 300), "JPEG"),
    "EXIF": turned,
    "CMYK": lambda: encoded(picture(80, 64).convert("CMYK"), "JPEG"),
    "alpha": clear,
    "a palette": lambda: encoded(picture(64, 50).quantize(16), "PNG"),
    "grey": lambda: encoded(picture(45, 45).convert("L"), "PNG"),
    "tall": lambda: encoded(picture(33, 400), "PNG"),
    "wide": lambda: encoded(picture(401, 35), "PNG"),
    "an odd rest": lambda: encoded(picture(97, 64), "PNG"),
    "as large as it should be": lambda: encoded(picture(32, 32), "PNG"),
    "smaller": lambda: encoded(picture(11, 20), "WEBP", lossless=True),
    "one row": lambda: encoded(picture(40, 1), "PNG"),
}


def theirs(data: bytes, processor: Any) -> NDArray[np.float32]:
    """The pixels of the model's own processor, of a picture that is turned upright first, as their loader does."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    pixels: NDArray[np.float32] = np.asarray(processor(upright, return_tensors="np")["pixel_values"][0])
    return pixels


def captions() -> list[str]:
    """Captions of every script: words of eight characters' neighbourhoods, with spaces, marks and punctuation."""
    rng = np.random.default_rng(4)
    alphabets = [range(start, start + 24) for start in range(0x21, 0x3100, 0x60)] + [range(0x4E00, 0x4E20)]
    alphabets += [range(0xAC00, 0xAC20), range(0x1F600, 0x1F620), range(0x41, 0x5B), range(0x61, 0x7B)]
    found = []
    for index in range(500):
        alphabet = [chr(code) for code in alphabets[index % len(alphabets)]]
        known = [letter for letter in alphabet if unicodedata.category(letter) not in ("Cn", "Cc", "Cs", "Co")]
        words = ["".join(rng.choice(known or ["a"], rng.integers(1, 7))) for _ in range(rng.integers(1, 8))]
        words.insert(0, str(rng.choice(WORDS)))
        found.append(str(rng.choice([" ", "  ", ", ", "\t", "\u00a0"])).join(words))
    return found
