"""Single values of manifest.json, checked. Each function raises ValueError for a value of another kind."""

from __future__ import annotations

import math
import re
from typing import Any

from camp_sdk.runtime.messages import brief

MAX_STOP_WORDS = 1000


def hash_from(raw: Any) -> str:
    """A SHA-256 in hexadecimal."""
    if not isinstance(raw, str) or not re.fullmatch("[0-9a-f]{64}", raw):
        raise ValueError(f"hash {brief(raw)}, expected a SHA-256 in hexadecimal")
    return raw


def stop_words_from(raw: Any) -> tuple[str, ...]:
    """The tokens of a list of bounded length."""
    if not isinstance(raw, list) or len(raw) > MAX_STOP_WORDS or not all(isinstance(word, str) for word in raw):
        raise ValueError(f"stop_words: expected a list of at most {MAX_STOP_WORDS} strings")
    return tuple(raw)


def unit_from(raw: Any) -> float:
    """The unit of logits, a positive number."""
    if type(raw) not in (int, float) or not 0 < raw < math.inf:
        raise ValueError(f"logit_unit {brief(raw)}: expected a positive number")
    return float(raw)


def vocabulary_from(raw: Any) -> int | None:
    """The number of tokens, or None."""
    if raw is None:
        return None
    if type(raw) is not int or raw < 1:
        raise ValueError(f"vocabulary {raw!r}: expected a number of tokens, or null")
    return raw
