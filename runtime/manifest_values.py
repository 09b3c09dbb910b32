"""Single values of manifest.json, checked. Each function raises ValueError for a value of another kind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from camp_sdk.runtime.messages import brief

MAX_STOP_WORDS = 1000
MAX_SHORTLIST = 1 << 31


@dataclass(frozen=True)
class FirstStage:
    """How global vectors that come from a pretrained network and the scores of the network above it work together.

    Args:
        shortlist: the number of items that a ranking scores, unless it names another.
        weight: the weight of a dot product of the vectors beside a logit that ranked best on the dev split; None if it
            was not measured.
    """

    shortlist: int
    weight: float | None = None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> FirstStage:
        """A FirstStage from plain values.

        Args:
            raw: the values by name.

        Raises:
            KeyError, TypeError, ValueError: the values are not a valid FirstStage.
        """
        shortlist, weight = raw["shortlist"], raw.get("weight")
        if type(shortlist) is not int or not 1 <= shortlist <= MAX_SHORTLIST:
            raise ValueError(f"shortlist {brief(shortlist)}: expected 1 to {MAX_SHORTLIST}")
        if weight is not None and (type(weight) not in (int, float) or not 0 <= weight < math.inf):
            raise ValueError(f"weight {brief(weight)}: expected a number, 0 or more, or null")
        return cls(shortlist, None if weight is None else float(weight))


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
