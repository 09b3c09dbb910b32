"""Small random models as their makers publish them: written by `transformers`, in folders of four files."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers

SIZE, PATCH, LONGEST = 32, 8, 24
WORDS = "a photo of the red blue dog cat circle star and two people on above left house don't 's".split()  # noqa: SIM905


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


def write_siglip(folder: Path, padding_side: str = "right") -> Path:
    """A SigLIP of two layers a tower, with the tokenizer of SigLIP 2."""
    from transformers import Siglip2Tokenizer, SiglipConfig, SiglipImageProcessorPil, SiglipModel

    vocabulary, merges = gemma_vocabulary()
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    text = {"hidden_size": 24, "vocab_size": len(vocabulary), "max_position_embeddings": LONGEST, **layers}
    text |= {"projection_size": 32, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
    vision = {"hidden_size": 32, "image_size": SIZE, "patch_size": PATCH, **layers}
    torch.manual_seed(5)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    spread(model)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    markers = {"add_bos_token": False, "add_eos_token": True, "padding_side": padding_side}
    tokenizer = Siglip2Tokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST, **markers)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": SIZE, "width": SIZE}, resample=2).save_pretrained(folder)
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
