"""Files of word vectors, which learned word vectors can start from.

A .npy file holds float [vocabulary, width], in the order of the vocabulary. A .txt file has a word and its numbers on
each line, separated by single spaces, as GloVe and word2vec write them; word2vec begins with a line "count width".
Text is read line by line: the memory does not grow with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.arrays import map_array
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.messages import brief

MAX_LINE = 1 << 20  # bytes; 300 numbers take about 3,000


@dataclass(frozen=True)
class WordTable:
    """Vectors of some words of a vocabulary.

    Args:
        rows: The index of each word in the vocabulary, [F] int64.
        vectors: Its vector, [F, width] float32.
    """

    rows: NDArray[np.int64]
    vectors: NDArray[np.float32]


def width_of(path: Path) -> int:
    """The width of the vectors of a file, from its beginning.

    Args:
        path: The file.

    Raises:
        InputError: Its name ends in neither .npy nor .txt.
        BundleError: It is missing or broken.
    """
    if path.suffix == ".npy":
        return int(_map_vectors(path).shape[1])
    if path.suffix != ".txt":
        raise InputError(f"`word_vectors` {path}: expected a file that ends in .npy or .txt")
    _, line = next(_lines(path), (1, ""))
    header = _header(line)
    width = header[1] if header else len(_fields(line)) - 1
    if width < 1:
        raise BundleError(f'{path}:1 is {brief(line)}: expected a word and its numbers, or "count width"')
    return width


def read_vectors(path: Path, vocabulary: Mapping[str, int]) -> WordTable:
    """Read the vectors of a vocabulary's words. Words of the file that are not in the vocabulary are skipped.

    Args:
        path: The file.
        vocabulary: Word to index, from 0.

    Raises:
        InputError: A .npy file has another number of rows than the vocabulary, or a text none of its words.
        BundleError: The file is missing or broken; for a text, the message names the line.
    """
    if path.suffix == ".npy":
        return _read_rows(path, len(vocabulary))
    width, found = width_of(path), dict[int, NDArray[np.float32]]()
    number, expected = 0, None
    for number, line in _lines(path):
        if number == 1 and (header := _header(line)):
            expected = header[0]
            continue
        word, numbers = _parse(line, width, f"{path}:{number}")
        if (row := vocabulary.get(word)) is not None and row not in found:
            found[row] = _vector(numbers, f"{path}:{number}")
    if expected is not None and expected != number - 1:
        raise BundleError(f"{path} has {number - 1} words, its first line says {expected}: copy it again")
    if not found:
        raise InputError(f"`word_vectors` {path} has none of the {len(vocabulary)} words of the vocabulary")
    return WordTable(np.array(list(found), np.int64), np.stack(list(found.values())))


def _read_rows(path: Path, words: int) -> WordTable:
    vectors = _map_vectors(path)
    if len(vectors) != words:
        raise InputError(
            f"`word_vectors` {path} has {len(vectors)} rows, the vocabulary {words} words: "
            "expected one row for each, in its order"
        )
    with np.errstate(over="ignore"):
        numbers = vectors.astype(np.float32)
    finite = np.isfinite(numbers).all(1)
    if not finite.all():
        raise BundleError(f"{path}: row {int(finite.argmin())} is NaN or infinite: expected finite numbers")
    return WordTable(np.arange(words), numbers)


def _map_vectors(path: Path) -> NDArray[Any]:
    vectors: NDArray[Any] = map_array(path, "write it again with numpy.save")
    if vectors.dtype.kind != "f" or vectors.ndim != 2 or not vectors.size:
        raise BundleError(f"{path} is {vectors.dtype} {vectors.shape}: expected floats [vocabulary, width]")
    return vectors


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text with their numbers, from 1; no line is longer than `MAX_LINE`."""
    if not path.is_file():
        raise BundleError(f"{path} not found: expected word vectors as text")
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise BundleError(f"{path}:{number} is longer than {MAX_LINE} bytes: expected a word and its numbers")
            try:
                yield number, line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BundleError(f"{path}:{number} is not UTF-8 text ({error}): convert it to UTF-8") from None


def _header(line: str) -> tuple[int, int] | None:
    """The count and the width of word2vec's first line; None for any other line."""
    fields = _fields(line)
    if len(fields) != 2 or not all(field.isascii() and field.isdecimal() for field in fields):
        return None
    return int(fields[0]), int(fields[1])


def _fields(line: str) -> list[str]:
    # Not split(): a word may hold other white space, such as a no-break space.
    return line.rstrip(" \r\n").split(" ")


def _parse(line: str, width: int, where: str) -> tuple[str, list[str]]:
    """The word of a line and its numbers; the word may hold spaces, as some of GloVe's do (". . .")."""
    fields = _fields(line)
    between = fields[1:-width]
    if len(fields) <= width or (between and all(map(_is_number, between))):
        raise BundleError(f"{where} has {len(fields)} fields: expected a word and {width} numbers")
    return " ".join(fields[:-width]), fields[-width:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _vector(numbers: list[str], where: str) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(number) for number in numbers]).astype(np.float32)
    except ValueError as error:
        raise BundleError(f"{where} holds no number ({error}): expected a word and {len(numbers)} numbers") from None
    if not np.isfinite(vector).all():
        raise BundleError(f"{where} is NaN or infinite: expected finite numbers")
    return vector
