"""Encode one part of a corpus, in whichever process: it commits as it goes, and goes on where it was."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camp_sdk.cluster.sources import Source
from camp_sdk.index.living import Index
from camp_sdk.pictures import MAX_MEGAPIXELS
from camp_sdk.results import Skipped
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.threads import map_ahead

REPORT_ITEMS = 256
FETCHERS = 8  # pictures that are fetched at a time
BUSY_S = 60.0  # for a process that was lost to be gone


@dataclass(frozen=True)
class Encoder:
    """How parts are encoded.

    Args:
        bundle: The folder of the bundle.
        backend: As `Retriever` takes it.
        precision: As `Retriever` takes it.
        stored: How tensors are stored; None for the default of an index.
        threads: Threads of a process; None for every core.
        max_megapixels: Pictures with more megapixels are not decoded.
    """

    bundle: Path
    backend: str = "auto"
    precision: str = "float32"
    stored: str | None = None
    threads: int | None = None
    max_megapixels: float = MAX_MEGAPIXELS


@dataclass(frozen=True)
class PartJob:
    """A part to encode.

    Args:
        part: Its number.
        path: Its index.
        sources: Its pictures.
        encoder: How.
    """

    part: int
    path: Path
    sources: Sequence[Source]
    encoder: Encoder


@dataclass(frozen=True)
class Progress:
    """What was done of a part since it was reported last.

    Args:
        part: The number of the part.
        encoded: Pictures that were encoded and committed.
        unchanged: Pictures that were there already.
        skipped: Pictures that cannot be read; ``index`` is the position in the part.
    """

    part: int
    encoded: int = 0
    unchanged: int = 0
    skipped: tuple[Skipped, ...] = field(default=())

    @property
    def items(self) -> int:
        """The number of pictures."""
        return self.encoded + self.unchanged + len(self.skipped)


def encode_part(job: PartJob) -> Iterator[Progress]:
    """Encode a part; makes its index if there is none.

    Pictures that are there are not encoded again: files, if their size and time of change, or their content, are the
    same; those that are fetched, if their key is there, which is not fetched again.

    Args:
        job: The part.

    Yields:
        What was done.

    Raises:
        CampError: The bundle or the index cannot be used.
        OSError: The index cannot be written.
    """
    encoder = job.encoder
    with (
        Retriever(encoder.bundle, encoder.backend, encoder.precision, encoder.threads) as retriever,
        retriever.open_index(job.path, create=True, precision=encoder.stored, timeout_s=BUSY_S) as index,
    ):
        sources = enumerate(job.sources)
        while some := list(itertools.islice(sources, REPORT_ITEMS)):
            yield _encoded(job, index, some)


def _encoded(job: PartJob, index: Index, numbered: Sequence[tuple[int, Source]]) -> Progress:
    new = [(number, source) for number, source in numbered if not (source.is_remote and source.key in index)]
    skipped: list[Skipped] = []
    readable: list[tuple[int, Source, Any]] = []
    with closing(map_ahead(_read, new, FETCHERS, FETCHERS)) as read:
        for number, source, picture in read:
            if isinstance(picture, str):
                skipped.append(Skipped(number, source.key, picture))
            else:
                readable.append((number, source, picture))
    keys = [source.key for _, source, _ in readable]
    pictures = [picture for _, _, picture in readable]
    added = index.add(pictures, keys, skip_broken=True, max_megapixels=job.encoder.max_megapixels)
    skipped += [Skipped(readable[one.index][0], keys[one.index], one.reason) for one in added.skipped]
    known = len(numbered) - len(new)
    return Progress(job.part, added.added + added.replaced, added.unchanged + known, tuple(skipped))


def _read(numbered: tuple[int, Source]) -> tuple[int, Source, Any]:
    """A picture: its path, its bytes, or why it cannot be fetched, in words."""
    number, source = numbered
    if not source.is_remote:
        return number, source, Path(source.location)
    try:
        return number, source, source.fetch()
    except Exception as error:  # of any storage's package
        return number, source, f"cannot be fetched: {error or type(error).__name__}"
