"""Items on their way to a server: divided among requests, and the counts of all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.client.contents import data_url, to_json
from camp_sdk.index.arrivals import Arrival, arrivals
from camp_sdk.index.items import Added
from camp_sdk.pictures import PictureError
from camp_sdk.results import Skipped
from camp_sdk.runtime.errors import CampError, InputError
from camp_sdk.runtime.messages import brief, visible

Counts = tuple[int, int, int]  # added, replaced, unchanged


@dataclass
class Adding:
    """What became of the items so far.

    Args:
        skip_broken: Leave out pictures that cannot be read, instead of raising.
    """

    skip_broken: bool

    def __post_init__(self) -> None:
        self._counts: list[Counts] = []
        self._skipped: list[Skipped] = []

    def parts(self, items: Any, keys: Any, metadata: Any) -> Iterator[tuple[Arrival, str]]:
        """The items with what a request says of each, in JSON.

        Args:
            items: Pictures, or texts.
            keys: A key for each, or None.
            metadata: Metadata for each, or None.

        Raises:
            InputError: An argument has the wrong type, or a picture cannot be read.
        """
        kind, listed = _kind(items)
        for arrival in arrivals(kind, listed, keys, metadata, Path.cwd()):
            try:
                yield arrival, _in_json(arrival)
            except PictureError as error:
                self._leave_out(Skipped(arrival.index, arrival.name, _reason(str(error), arrival.name)))

    def answered(self, sent: Iterable[Arrival], counts: Counts, skipped: Mapping[str, str]) -> int:
        """Count the items of a request.

        Args:
            sent: The items.
            counts: How many of them were added, replaced and unchanged.
            skipped: Why others were left out, by their keys.

        Returns:
            How many items it had.

        Raises:
            InputError: One of them cannot be read.
        """
        by_key = {arrival.entry.key: arrival for arrival in sent}
        self._counts.append(counts)
        for key, reason in skipped.items():
            arrival = by_key.get(key)
            if arrival is None:
                raise CampError(
                    f"the answer leaves out {brief(key)}, which was not sent: expected one of the keys sent"
                )
            self._leave_out(Skipped(arrival.index, arrival.name, visible(_reason(reason, key))))
        return sum(counts) + len(skipped)

    def result(self) -> Added:
        """The counts of all items."""
        added, replaced, unchanged = map(sum, zip((0, 0, 0), *self._counts, strict=True))
        return Added(added, replaced, unchanged, tuple(sorted(self._skipped, key=lambda one: one.index)))

    def _leave_out(self, one: Skipped) -> None:
        if not self.skip_broken:
            raise InputError(f"{one.name} {one.reason}")
        self._skipped.append(one)


def _kind(items: Any) -> tuple[str, Any]:
    """ "text" or "image", by the first of several items, and the items. A string is a text, never a path."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Iterable):
        return "image", items  # which is refused as no list
    rest = iter(items)
    first = list(itertools.islice(rest, 1))
    return ("text" if first and isinstance(first[0], str) else "image"), itertools.chain(first, rest)


def _in_json(arrival: Arrival) -> str:
    entry = arrival.entry
    if entry.text is None and isinstance(arrival.item, str):
        raise InputError(f"item {arrival.index} is a text among pictures: expected pictures (a path is a Path)")
    content = {"picture": data_url(arrival.item, arrival.name)} if entry.text is None else {"text": entry.text}
    metadata = "" if entry.metadata is None else f', "metadata": {entry.metadata}'
    return f"{to_json({'key': entry.key, **content})[:-1]}{metadata}}}"


def _reason(message: str, name: str) -> str:
    return message.removeprefix(f"{name} ")
