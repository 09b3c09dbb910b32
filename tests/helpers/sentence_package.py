"""A package with a pretrained sentence encoder, like published ones, but with two layers and few word pieces."""

from __future__ import annotations

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor

WIDTH, HEADS, INNER, LAYERS, POSITIONS = 32, 4, 48, 2, 80
WORDS = "large small red circle star , ! dog run on ##ning the above blue left of and thing no . near"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *SPECIALS,
    *WORDS.split(),
    *string.ascii_lowercase,
    *(f"##{c}" for c in string.ascii_lowercase),
    *string.digits,
]


def write_package(site: Path, name: str) -> Path:
    """Write a package into a folder of packages; returns its model's folder. Importing the package fails."""
    model = site / name / "model"
    model.mkdir(parents=True)
    (site / name / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    (model / "config.json").write_text(json.dumps(config()))
    (model / "tokenizer.json").write_text(piece_tokenizer().to_str())
    save_file(published_weights(), model / "model.safetensors")
    return model


def config() -> dict[str, str | int | float]:
    """What config.json says, in the names of published ones."""
    sizes = {"vocab_size": len(PIECES), "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "intermediate_size": INNER}
    sizes |= {"num_attention_heads": HEADS, "max_position_embeddings": POSITIONS, "type_vocab_size": 2}
    return {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0, **sizes}


def piece_tokenizer() -> Tokenizer:
    """Word pieces, with markers; cut at 128 and padded to 128, as published."""
    tokenizer = Tokenizer(WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    return tokenizer


def published_weights() -> dict[str, Tensor]:
    """Weights under their published names, from a formula."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(PIECES), WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "pooler.dense.weight": (WIDTH, WIDTH),
        "pooler.dense.bias": (WIDTH,),
    }
    maps = {f"attention.{part}": (WIDTH, WIDTH) for part in ("self.query", "self.key", "self.value", "output.dense")}
    maps |= {"intermediate.dense": (INNER, WIDTH), "output.dense": (WIDTH, INNER)}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{index}." for index in range(LAYERS)):
        shapes |= {f"{layer}{name}.weight": shape for name, shape in maps.items()}
        shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in maps.items()}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    shapes |= {f"{norm}.{part}": (WIDTH,) for norm in norms for part in ("weight", "bias")}
    weights = {name: _waves(shape, place) for place, (name, shape) in enumerate(sorted(shapes.items()))}
    for name in (f"{norm}.weight" for norm in norms):
        weights[name] += 1
    weights["embeddings.position_ids"] = torch.arange(POSITIONS)[None]
    return weights


def _waves(shape: tuple[int, ...], place: int) -> Tensor:
    steps = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return 0.3 * torch.sin(0.7 * steps**2 + place).reshape(shape).float()  # squares: plain waves would be of rank two
