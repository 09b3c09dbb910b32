"""Text files that others publish, read a piece at a time in bounded memory: lines, and the items of JSON arrays."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.messages import brief

MAX_LINE = 1 << 20  # characters
CHUNK = 1 << 20  # bytes of JSON read at a time
MAX_VALUE = 4 << 20  # characters of an item, or of a value that is passed over
SPACE = re.compile(r"[ \t\n\r]*")
LONGEST_WORD = 16  # characters: JSON's longest word is -Infinity, and its longest escape \ud83d\ude00
PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh91AY&SY": "bzip2", b"\xfd7zXZ": "xz"}  # by how they begin
Advance = Callable[[int], None]


class Item(NamedTuple):
    """An item of an array in a JSON file.

    Args:
        array: The key of the array.
        where: The file, the line where the item begins, and its place in the array, for messages.
        value: The item.
    """

    array: str
    where: str
    value: Any


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file; a pipe, which could wait for ever, is refused.

    Raises:
        BundleError: It cannot be opened, or is compressed.
    """
    try:
        if path.exists() and not path.is_file():
            raise BundleError(f"{path} is not a file")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    with file:
        begin = file.peek(16)
        for mark, kind in PACKED.items():
            if begin.startswith(mark):
                raise BundleError(f"{path} is compressed with {kind}: unpack it first")
        yield file


def read_lines(path: Path, advance: Advance, limit: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """Read a file of UTF-8 text line by line, with line ends of any system.

    Args:
        path: The file.
        advance: Is called with the number of bytes just read.
        limit: The most characters of a line.

    Yields:
        The number of each line, from 1, and the line with its end as a newline.

    Raises:
        BundleError: The file cannot be opened, or a line is too long or is not UTF-8 text.
    """
    with opened(path) as file:
        # Strict decoding raises for a block of lines, and could not say which of them is wrong.
        text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape")
        number = 0
        while line := text.readline(limit + 1):
            number += 1
            if len(line) > limit:
                raise BundleError(f"{path}:{number} has more than {limit} characters: expected a line of text")
            advance(_encoded_size(line, f"{path}:{number}"))
            yield number, line


def _encoded_size(line: str, where: str) -> int:
    try:
        return len(line.encode())
    except UnicodeEncodeError as error:
        byte = ord(line[error.start]) & 0xFF
        raise BundleError(
            f"{where} is not UTF-8 text (byte 0x{byte:02x} after {error.start} characters): convert it to UTF-8"
        ) from None


def read_items(path: Path, arrays: Collection[str], advance: Advance) -> Iterator[Item]:
    """Read the items of some arrays of a JSON object, one at a time.

    The files are gigabytes once they are parsed, and often a single line.

    Args:
        path: The file.
        arrays: The keys of the arrays at the top of the file; other values are passed over.
        advance: Is called with the number of bytes just read.

    Yields:
        The items of each array, in the order of the file.

    Raises:
        BundleError: The file cannot be opened, is not a JSON object with these arrays, or has an item that is too long.
    """
    with opened(path) as file:
        window = _Window(file, path, advance)
        missing = set(arrays)
        for key in window.each_key():
            if key not in arrays:
                window.value()
                continue
            if key not in missing:
                raise BundleError(f"{window.where}: {key} is there a second time")
            missing.discard(key)
            yield from window.items(key)
    if missing:
        raise BundleError(f"{path} has no {' and no '.join(sorted(missing))}: expected a JSON object that has")


class _Window:
    """The part of a JSON file that is in memory, and the position in it."""

    def __init__(self, file: IO[bytes], path: Path, advance: Advance) -> None:
        self._file, self._path, self._advance = file, path, advance
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._parser = json.JSONDecoder()
        self._text, self._at = "", 0
        self._line, self._counted = 1, 0  # the line at the position up to which line ends were counted

    @property
    def where(self) -> str:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return f"{self._path}:{self._line}"

    def each_key(self) -> Iterator[str]:
        """The keys of the object that the file holds; each value must be read before the next key."""
        self._expect("{")
        if self._next() == "}":
            self._at += 1
        else:
            yield self._key()
            while self._expect(",}") == ",":
                yield self._key()
        if rest := self._next():
            raise BundleError(f"{self.where}: {rest!r} follows the end of the JSON object")

    def items(self, array: str) -> Iterator[Item]:
        """The items of the array that comes next."""
        self._expect("[")
        if self._next() == "]":
            self._at += 1
            return
        index = 0
        while index == 0 or self._expect(",]") == ",":
            self._next()
            where = f"{self.where}, {array}[{index}]"
            yield Item(array, where, self.value(where))
            index += 1

    def value(self, where: str = "") -> Any:
        """The value that comes next, whole; messages say where it is."""
        self._next()
        where = where or self.where
        while True:
            try:
                value, end = self._parser.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if not self._may_be_cut_off(error) or not self._more(where):
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                    raise BundleError(f"{where} is not JSON ({reason.removesuffix(' starting at')})") from None
                continue
            if end < len(self._text) or not self._more(where):  # digits may go on
                self._at = end
                return value

    def _may_be_cut_off(self, error: Exception) -> bool:
        """Whether more text could mend a value: only where the text ends, or where it ends within a string."""
        if not isinstance(error, json.JSONDecodeError):  # a number of too many digits, or too many brackets
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - LONGEST_WORD

    def _key(self) -> str:
        if self._next() != '"':
            raise BundleError(f"{self.where}: expected a key of a JSON object")
        key = str(self.value())
        self._expect(":")
        return key

    def _expect(self, marks: str) -> str:
        found = self._next()
        if not found or found not in marks:
            raise BundleError(
                f"{self.where} is not JSON: expected {' or '.join(marks)}, found {brief(found or 'the end')}"
            )
        self._at += 1
        return found

    def _next(self) -> str:
        """Pass over white space, and return the next character; nothing at the end."""
        while True:
            found = SPACE.match(self._text, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self, where: str = "") -> bool:
        """Read on; False at the end of the file."""
        if len(self._text) - self._at > MAX_VALUE:
            raise BundleError(
                f"{where or self.where}: a value has more than {MAX_VALUE} characters: expected shorter ones"
            )
        chunk = self._file.read(CHUNK)
        self._advance(len(chunk))
        try:
            text = self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n", self._counted) + error.object.count(b"\n", 0, error.start)
            raise BundleError(f"{self._path}:{line} is not UTF-8 text ({error}): convert it to UTF-8") from None
        self._line += self._text.count("\n", self._counted, self._at)
        self._text, self._at, self._counted = self._text[self._at :] + text, 0, 0
        return bool(chunk)
