"""What importers yield, and what they leave out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from camp_sdk.datasets.metadata import encodes
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
DEV_NAMES = ("val", "validation", "valid")
MISSING_PICTURES = "pictures that are missing"
EMPTY_CAPTIONS = "captions that are empty"
NO_CAPTIONS = "pictures without captions"
NO_SPLIT = "pictures of no split"
MAX_CAPTION = 100_000  # characters


class Record(NamedTuple):
    """Captions of one picture; several records may be of the same picture.

    Args:
        split: The split it is in.
        file_name: Its path relative to the root of the pictures.
        captions: At least one, each on one line.
        where: The file and the line that name the picture, for messages.
    """

    split: str
    file_name: str
    captions: list[str]
    where: str


@dataclass(frozen=True)
class Reading:
    """How an importer reads.

    Args:
        advance: Is called with the number of bytes just read.
        skip_missing: Whether empty captions are left out and counted, instead of being an error.
        left_out: Counts what is left out, by what it is.
    """

    advance: Callable[[int], None] = lambda size: None
    skip_missing: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def captions(self, texts: Iterable[Any], where: str) -> list[str]:
        """Captions on one line each, where every run of white space is one space.

        Args:
            texts: Values of a file that should be captions.
            where: Where they are, for messages.

        Raises:
            BundleError: One is not text, or is too long.
            InputError: One is empty, and such captions are not left out.
        """
        return list(self._whole(texts, where))

    def _whole(self, texts: Iterable[Any], where: str) -> Iterator[str]:
        for text in texts:
            if not isinstance(text, str) or not encodes(text):
                raise BundleError(f"{where}: the caption is {brief(text)}, expected text")
            if len(text) > MAX_CAPTION:
                raise BundleError(f"{where}: the caption has {len(text)} characters, expected at most {MAX_CAPTION}")
            if caption := " ".join(text.split()):
                yield caption
            elif self.skip_missing:
                self.left_out[EMPTY_CAPTIONS] += 1
            else:
                raise InputError(f"{where}: the caption is empty; `skip_missing` leaves out such captions")


def split_name(name: Any, where: str) -> str:
    """The name of a split as our folders have it: "dev" for "val".

    Args:
        name: The name in a file or of an option.
        where: Where it is, for messages.

    Raises:
        BundleError: It cannot name a folder.
    """
    if not isinstance(name, str) or not SPLIT.fullmatch(name):
        raise BundleError(f"{where}: the split is {brief(name)}, expected a name such as train, dev or test")
    return "dev" if name in DEV_NAMES else name
