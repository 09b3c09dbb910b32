"""Writes a data set of pictures: captions gathered by picture, every picture looked for, and all files at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from camp_sdk.datasets.metadata import METADATA_FILE, encodes, write_rows
from camp_sdk.datasets.records import MISSING_PICTURES, Reading, Record
from camp_sdk.datasets.root import MissingPictureError, PictureRoot, root_text, write_root
from camp_sdk.datasets.text_files import Advance
from camp_sdk.progress import progress_bar
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import check_writable, followed, is_empty, write_aside
from camp_sdk.runtime.messages import brief

AT_ONCE = 256  # pictures between two steps of the progress bar


class Described(NamedTuple):
    """The captions of a picture, and the file and line that name it first."""

    captions: list[str]
    where: str


Pictures = dict[str, dict[str, Described]]  # by split and by file name
Item = tuple[str, Described]


@dataclass(frozen=True)
class Target:
    """What an import writes.

    Args:
        output: The folder of the new data set.
        images: The folder that all pictures lie below; they stay there.
        skip_missing: Whether missing pictures and empty captions are left out and counted, instead of being an error.
    """

    output: Path
    images: Path
    skip_missing: bool = False


@dataclass(frozen=True)
class SplitCounts:
    """The size of a split.

    Args:
        images: The number of its images.
        captions: The number of their captions.
    """

    images: int
    captions: int


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Args:
        output: The folder of the data set.
        splits: The size of each split.
        left_out: The number of things that were left out, by what they are.
    """

    output: Path
    splits: dict[str, SplitCounts]
    left_out: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {**asdict(self), "output": str(self.output)}


def check_output(output: Path) -> None:
    """Check that a data set can be written, before its files are read.

    Raises:
        InputError: Something is there.
        OSError: Nothing can be written there.
    """
    if output.exists() and not is_empty(output):
        raise InputError(f"{output} exists and is not an empty folder: name a new folder, or remove it first")
    check_writable(followed(output))


def total_bytes(files: Iterable[Path]) -> int:
    """The bytes of some files, for a progress bar; a missing file is reported when it is read."""
    return sum(file.stat().st_size for file in files if file.is_file())


def import_pictures(read: Callable[[Reading], Iterable[Record]], files: Sequence[Path], target: Target) -> Imported:
    """Write a data set of pictures from the files of another format. If it fails, nothing is written.

    Args:
        read: Reads the files as records.
        files: The files that it reads, for the progress bar.
        target: What to write.

    Raises:
        InputError: The output is not empty, a picture is missing, a caption is empty, or there is no picture.
        BundleError: A file is broken, names a picture that is not below the root, or has one in two splits.
        OSError: The data set cannot be written.
    """
    check_output(target.output)
    if not target.images.is_dir():
        raise InputError(f"`images` {target.images} is not a folder: expected the folder of the pictures")
    if not encodes(str(target.images)):
        raise InputError(f"`images` {target.images} is not valid Unicode, which JSON needs: rename the folder")
    with progress_bar("reading captions", total_bytes(files)) as advance:
        reading = Reading(advance, target.skip_missing)
        pictures = gather(read(reading))
    total = sum(map(len, pictures.values()))
    if not total:
        raise InputError(f"{', '.join(map(str, files))}: no picture has a caption and a split")
    with progress_bar("looking for pictures", total) as advance:
        found = _those_there(pictures, target, Reading(advance, target.skip_missing, reading.left_out))
    if not found:
        raise InputError(f"{', '.join(map(str, files))}: none of {total} pictures is in {target.images}")
    _write(found, target)
    counts = {
        split: SplitCounts(len(own), sum(len(one.captions) for one in own.values())) for split, own in found.items()
    }
    return Imported(target.output, counts, dict(reading.left_out))


def gather(records: Iterable[Record]) -> Pictures:
    """The captions of each picture, in the order of the records.

    Args:
        records: Captions of pictures; several may be of the same picture.

    Raises:
        BundleError: A name is not valid Unicode, or a picture is in two splits: training would see what is measured.
    """
    pictures: Pictures = {}
    split_of: dict[str, str] = {}
    for record in records:
        name = _plain(record)
        if (before := split_of.setdefault(name, record.split)) != record.split:
            known = pictures[before][name]
            raise BundleError(f"{record.where}: {brief(name)} is in {record.split}, and in {before} at {known.where}")
        known = pictures.setdefault(record.split, {}).setdefault(name, Described([], record.where))
        known.captions.extend(record.captions)
    return pictures


def _plain(record: Record) -> str:
    """The name of a picture in the one way that all its names are written: without "." and empty parts."""
    if not encodes(record.file_name):
        raise BundleError(f"{record.where}: file_name {brief(record.file_name)} is not valid Unicode")
    return str(PurePosixPath(record.file_name)) if "/" in record.file_name else record.file_name


def _those_there(pictures: Pictures, target: Target, reading: Reading) -> Pictures:
    """The pictures without those that are missing; no split is empty."""
    root = PictureRoot(target.images, declared=True)
    found: Pictures = {}
    for split, own in pictures.items():
        steps = _in_steps(own.items(), reading.advance)
        there = {name: one for name, one in steps if _is_there(root, name, one.where, reading)}
        found |= {split: there} if there else {}
    return found


def _in_steps(items: Iterable[Item], advance: Advance) -> Iterator[Item]:
    """The items, with the progress bar advanced now and then: a step of the bar takes longer than a picture."""
    done = 0
    for done, item in enumerate(items, start=1):
        yield item
        if done % AT_ONCE == 0:
            advance(AT_ONCE)
    advance(done % AT_ONCE)


def _is_there(root: PictureRoot, name: str, where: str, reading: Reading) -> bool:
    try:
        root.path_of(name, where)
    except MissingPictureError as error:
        if not reading.skip_missing:
            raise InputError(f"{error}; `skip_missing` leaves out such pictures") from None
        reading.left_out[MISSING_PICTURES] += 1
        return False
    return True


def _write(pictures: Pictures, target: Target) -> None:
    final = followed(target.output)
    with write_aside(final) as aside:
        aside.mkdir()
        for split, own in pictures.items():
            (aside / split).mkdir()
            write_rows(aside / split / METADATA_FILE, ((name, one.captions) for name, one in own.items()))
        write_root(aside, root_text(target.images, final))
