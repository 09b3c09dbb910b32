"""Small random models as their makers publish them: written by `transformers`, in folders of four files."""

from __future__ import annotations

import io
import json
import string
import unicodedata
from collections.abc import Callable
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


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
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
    names = [*pieces, "<|startoftext|>", "<|endoftext|>"]
    return {name: index for index, name in enumerate(names)}, merges


def write_clip(folder: Path, size: int = SIZE, act: str = "quick_gelu") -> Path:
    """A CLIP of two layers a tower: config.json, model.safetensors, preprocessor_config.json and tokenizer.json."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    vocabulary, merges = clip_vocabulary()
    end = vocabulary["<|endoftext|>"]
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": act}
    text = {"hidden_size": 24, "intermediate_size": 40, "vocab_size": len(vocabulary), "eos_token_id": end, **layers}
    text |= {"max_position_embeddings": LONGEST, "bos_token_id": end - 1, "pad_token_id": end}
    vision = {"hidden_size": 32, "intermediate_size": 48, "image_size": size, "patch_size": PATCH, **layers}
    torch.manual_seed(3)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20))
    spread(model)
    model.save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST).save_pretrained(folder)
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


def scored_pieces() -> Tokenizer:
    """The rules of SigLIP's tokenizer: lower case, no punctuation, pieces with scores, and an end marker."""
    letters = [*string.ascii_lowercase, *string.digits, "\u00e9", "\u6771"]
    words = [f"\u2581{word}" for word in WORDS if word.isalpha()]
    names = dict.fromkeys(["<pad>", "</s>", "<unk>", "\u2581", *words, "ing", "s", *letters])
    # Short pieces are less likely than long ones: scores are logarithms.
    tokenizer = Tokenizer(Unigram([(name, -2.0 - 8 / len(name)) for name in names], unk_id=2))
    punctuation = Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]")
    steps = [normalizers.Lowercase(), normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(r"\s+"), " ")]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def save_scored_pieces(folder: Path) -> int:
    """Write the tokenizer of SigLIP; its padding is the end marker, on the right."""
    from transformers import PreTrainedTokenizerFast

    inner = scored_pieces()
    names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>", "padding_side": "right"}
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=LONGEST, **names).save_pretrained(folder)
    return int(inner.get_vocab_size())


def save_byte_pairs(folder: Path) -> int:
    """Write the tokenizer of SigLIP 2; the padding is on the left, as is usual for its class."""
    from transformers import Siglip2Tokenizer

    vocabulary, merges = gemma_vocabulary()
    markers = {"add_bos_token": False, "add_eos_token": True}
    Siglip2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST, **markers).save_pretrained(folder)
    return len(vocabulary)


def write_siglip(folder: Path, second: bool) -> Path:
    """A SigLIP of two layers a tower, or a SigLIP 2: another tokenizer, and bilinear pixels."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    words = (save_byte_pairs if second else save_scored_pieces)(folder)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    text = {"hidden_size": 24, "vocab_size": words, "max_position_embeddings": LONGEST, **layers}
    text |= {"projection_size": 32, "bos_token_id": 2, "eos_token_id": 1}
    vision = {"hidden_size": 32, "image_size": SIZE, "patch_size": PATCH, **layers}
    torch.manual_seed(5)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    spread(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, resample=2 if second else 3).save_pretrained(folder)
    return folder


@torch.no_grad()
def spread(model: Any) -> None:
    """Larger weights and biases that are not zero, so that scores differ between pairs and every weight matters."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.mul_(4)
        elif name.endswith("bias"):
            weight.normal_(0, 0.1)


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
