"""From a published tokenizer.json to the form that the runtime accepts, with the same token ids."""

from __future__ import annotations

import json
from typing import Any

from camp_sdk.export.pretrained.source import TOKENIZER, Source
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.tokenizer_file import BYTES_LIMIT, checked_tokenizer


def tokenizer_of(source: Source, longest: int) -> str:
    """The text of tokenizer.json for a bundle.

    Args:
        source: the published model.
        longest: the most tokens of a text, markers counted.

    Raises:
        BundleError: the file is missing, or is not a tokenizer of a kind that the runtime accepts.
    """
    path = source.folder / TOKENIZER
    if not path.is_file():
        raise BundleError(f"{path} not found: save the model's fast tokenizer with transformers, which writes it")
    try:
        if path.stat().st_size > BYTES_LIMIT:
            raise ValueError(f"it has more than {BYTES_LIMIT} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw |= {
            "post_processor": _markers(raw["post_processor"]),
            "truncation": {"direction": "Right", "max_length": longest, "strategy": "LongestFirst", "stride": 0},
        }
        return checked_tokenizer(json.dumps(raw))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{path} is not a tokenizer of CLIP or SigLIP ({type(error).__name__}: {error})") from None


def _markers(processor: dict[str, Any]) -> dict[str, Any]:
    """The step that adds markers, as a template; others are returned unchanged."""
    if processor["type"] != "RobertaProcessing":
        return processor
    (first, first_id), (last, last_id) = processor["cls"], processor["sep"]
    pieces = [{"SpecialToken": {"id": first}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": last}}]
    listed = {name: {"ids": [index]} for name, index in ((first, first_id), (last, last_id))}
    return {"type": "TemplateProcessing", "single": pieces, "special_tokens": listed}
