"""From a published tokenizer.json to the form that the runtime accepts, with the same token ids."""

from __future__ import annotations

import json
from typing import Any

from camp_sdk.export.pretrained.source import MAX_REASON, TOKENIZER, TOKENIZER_CONFIG, Source
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief
from camp_sdk.runtime.tokenizer_file import BYTES_LIMIT, checked_tokenizer

PAD_LEFT = ("Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")  # classes that do so unless a file says other


def tokenizer_of(source: Source, longest: int) -> str:
    """The text of tokenizer.json for a bundle.

    Args:
        source: the published model.
        longest: the most tokens of a text, markers counted.

    Raises:
        BundleError: the file is missing, or is not a tokenizer of a kind that the runtime accepts.
    """
    raw = _read(source)
    try:
        raw |= {
            "post_processor": _markers(raw["post_processor"]),
            "truncation": {"direction": "Right", "max_length": longest, "strategy": "LongestFirst", "stride": 0},
        }
        return checked_tokenizer(json.dumps(raw))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _unknown(source, error) from None


def _read(source: Source) -> dict[str, Any]:
    """A tokenizer.json that has been published."""
    path = source.folder / TOKENIZER
    if not path.is_file():
        raise BundleError(f"{path} not found: save the model's fast tokenizer with transformers, which writes it")
    return source.read_json(TOKENIZER, BYTES_LIMIT)


def _unknown(source: Source, error: Exception) -> BundleError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]
    return BundleError(f"{source.folder / TOKENIZER} is not a tokenizer of CLIP or SigLIP ({reason})")


def padding_of(source: Source, usual: Any) -> tuple[int, bool]:
    """The token that fills texts up, and whether it comes before them.

    Args:
        source: the published model.
        usual: the token that config.json names, for models whose tokenizer names none.

    Raises:
        BundleError: no file names a token that is in the vocabulary, or tokenizer.json cannot be read.
    """
    settings = source.read_json(TOKENIZER_CONFIG) if (source.folder / TOKENIZER_CONFIG).is_file() else {}
    name = settings.get("pad_token")
    name = name.get("content") if isinstance(name, dict) else name
    token = usual if name is None else _vocabulary(source).get(name) if isinstance(name, str) else None
    side = settings.get("padding_side", "left" if settings.get("tokenizer_class") in PAD_LEFT else "right")
    if type(token) is not int or token < 0 or side not in ("left", "right"):
        shown = f"pad_token {brief(name)} and padding_side {brief(side)}"
        raise BundleError(f"{source.folder / TOKENIZER_CONFIG} has {shown}: expected a token, and left or right")
    return token, side == "left"


def _vocabulary(source: Source) -> dict[str, Any]:
    """The tokens of a tokenizer.json that has been published."""
    raw = _read(source)
    try:
        pieces = raw["model"]["vocab"]
        listed = {piece: index for index, (piece, _) in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
        return listed | {token["content"]: token["id"] for token in raw.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError) as error:
        raise _unknown(source, error) from None


def _markers(processor: dict[str, Any]) -> dict[str, Any]:
    """The step that adds markers, as a template; others are returned unchanged."""
    if processor["type"] != "RobertaProcessing":
        return processor
    (first, first_id), (last, last_id) = processor["cls"], processor["sep"]
    pieces = [{"SpecialToken": {"id": first}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": last}}]
    listed = {name: {"ids": [index]} for name, index in ((first, first_id), (last, last_id))}
    return {"type": "TemplateProcessing", "single": pieces, "special_tokens": listed}
