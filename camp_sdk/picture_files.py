"""Picture files: which values are pictures, how they are opened, and which files of a folder are pictures."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camp_sdk.png_chunks import is_metadata_limit, without_metadata
from camp_sdk.runtime.errors import InputError, install_command

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"))
AVIF_BRANDS = frozenset((b"avif", b"avis"))
# Pillow identifies these, but does not decode them unless the application brings a decoder.
HEADERS_ONLY = frozenset({"BUFR", "GRIB", "HDF5", "MPEG", "WMF"})
MAX_FILE_BYTES = 1 << 30  # of a file object, which is read into memory; a path has no such limit
NAMES_SHOWN = 3


@dataclass(frozen=True)
class PassedOver:
    """A file of a folder that is not read as a picture.

    Args:
        name: Its name in the folder.
        reason: Why it is not read, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class FoundPictures:
    """What a folder holds.

    Args:
        paths: The pictures, sorted by name.
        passed_over: The other files and the subfolders, sorted by name; hidden files are not listed.
    """

    paths: list[Path]
    passed_over: tuple[PassedOver, ...] = ()


def find_pictures(folder: Path, recursive: bool = False) -> FoundPictures:
    """List the picture files of a folder; hidden files are skipped.

    A file with the suffix of a common picture format is not opened here: if it is broken, or a dangling link, it is
    reported as a broken picture when it is read. Of the other files, those that Pillow can open are pictures.

    Args:
        folder: The folder.
        recursive: Also list those of its subfolders, except hidden ones and links.

    Raises:
        InputError: It is not a folder, or it holds no pictures.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected a folder of pictures")
    suffixes = _known_suffixes()
    paths: list[Path] = []
    passed_over: list[PassedOver] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow has to say of a file is said when it is read
        for entry in _entries(folder, recursive):
            reason = _reason_against(entry, suffixes)
            if reason is None:
                paths.append(Path(entry.path))
            else:
                passed_over.append(PassedOver(os.path.relpath(entry.path, folder), reason))
    passed_over.sort(key=lambda one: one.name)
    if not paths:
        raise InputError(_no_pictures(folder, passed_over, recursive))
    return FoundPictures(sorted(paths), tuple(passed_over))


def _entries(folder: Path, recursive: bool) -> Iterator[os.DirEntry[str]]:
    """What is in a folder, without hidden entries; with recursion, what is in its subfolders in their place."""
    left = [folder]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if recursive and entry.is_dir(follow_symlinks=False):
                    left.append(Path(entry.path))
                else:
                    yield entry


def describe(passed_over: Sequence[PassedOver]) -> str:
    """One line about files that were passed over: how many they are, and the first of them with the reasons."""
    first = "; ".join(f"{one.name} ({one.reason})" for one in passed_over[:NAMES_SHOWN])
    return f"{len(passed_over)} passed over: {first}{'; …' if len(passed_over) > NAMES_SHOWN else ''}"


def is_path(picture: Any) -> bool:
    """Whether a value is a path, as a string or an object that stands for one."""
    return isinstance(picture, (str, os.PathLike))


def is_file(picture: Any) -> bool:
    """Whether a value is a file object."""
    return callable(getattr(picture, "read", None)) and not is_path(picture)


def is_one_picture(value: Any) -> bool:
    """Whether a value that could be iterated over is a picture by itself, not a list of pictures."""
    return is_path(value) or is_file(value) or isinstance(value, (bytes, bytearray, memoryview))


def path_name(picture: Any) -> str | None:
    """The path that a picture was given as, or None."""
    return os.fsdecode(picture) if is_path(picture) else None


def in_memory(picture: Any) -> Any:
    """The contents of a file object, from where it stands, or of a buffer; any other picture as it is.

    The file is not closed.

    Raises:
        OSError: The file is too large, or at its end; reading it may raise any other error.
    """
    if isinstance(picture, (bytearray, memoryview)):
        return bytes(picture)
    if not is_file(picture):
        return picture
    parts: list[bytes] = []
    left = MAX_FILE_BYTES
    while left >= 0 and (part := picture.read(min(left + 1, 1 << 20))):
        if not isinstance(part, (bytes, bytearray, memoryview)):
            raise OSError(
                f"the file object returned a {type(part).__name__}: expected bytes, of a file opened with 'rb'"
            )
        parts.append(bytes(part))
        left -= len(part)
    if left < 0:
        raise OSError(f"the file object holds more than {MAX_FILE_BYTES >> 20} MiB: expected less, or a path")
    if not parts:
        raise OSError("the file object is at its end: rewind it with seek(0), or open the file again")
    return b"".join(parts)


def open_picture(source: Any) -> Image.Image:
    """Open a picture file by its header, without decoding it.

    Args:
        source: A path, or the bytes of a picture file.

    Raises:
        Exception: Of any type; `reason_of` gives the message.
    """
    from PIL import Image, UnidentifiedImageError

    # Otherwise Pillow does this at the first file of a rarer format, and files that other threads open then are not
    # recognised.
    Image.init()
    try:
        return Image.open(_stream(source), formats=_formats())
    except UnidentifiedImageError:
        if not _add_decoder(source):
            raise
    return Image.open(_stream(source), formats=_formats())


@contextmanager
def open_without_metadata(source: Any, refused: Exception) -> Iterator[Image.Image]:
    """Open a PNG that Pillow refused for the size of its metadata, as `is_metadata_limit` recognises.

    Args:
        source: A path, the bytes of a picture file, or the file, which stays open.
        refused: Is raised again if the file is not a PNG.
    """
    from PIL import Image

    stream = _stream(source)
    with Path(stream).open("rb") if isinstance(stream, str) else nullcontext(stream) as file:
        stripped = without_metadata(file)
        if stripped is None:
            raise refused
        with Image.open(stripped, formats=["PNG"]) as opened:
            yield opened


def reason_of(error: Exception) -> str:
    """Why a picture cannot be read, from what Pillow raised."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # for bytes, its own message shows a memory address
        return "it is in no format that Pillow knows"
    return str(error) or type(error).__name__


def _stream(source: Any) -> Any:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return os.fsdecode(source) if is_path(source) else source


def _formats() -> list[str]:
    from PIL import Image

    return [name for name in Image.ID if name != "EPS"]  # an EPS file is a program, which Ghostscript would run


def _add_decoder(source: Any) -> bool:
    """Have Pillow decode HEIC and AVIF by pillow-heif.

    Returns:
        Whether the file is in one of these formats, so that it may be possible to open it now.

    Raises:
        OSError: It is, and there is no decoder for it.
    """
    from PIL import Image, features

    brand = _brand(source)
    if brand in HEIF_BRANDS and "HEIF" not in Image.OPEN and not _register("register_heif_opener"):
        raise OSError(f"it is HEIC, which needs pillow-heif: {install_command('heif')}")
    # pillow-heif decoded AVIF as long as Pillow did not.
    if brand in AVIF_BRANDS and "avif" not in features.get_supported() and not _register("register_avif_opener"):
        raise OSError("it is AVIF, which this Pillow does not decode: install Pillow 11.3 or newer")
    return brand in HEIF_BRANDS | AVIF_BRANDS


def _register(opener: str) -> bool:
    """Call a function of pillow-heif, and return whether it is there to be called."""
    try:
        import pillow_heif

        getattr(pillow_heif, opener)()
    except (ImportError, AttributeError):
        return False
    return True


def _brand(source: Any) -> bytes:
    """The format of a file of the ISO base media kind, such as HEIC; nothing of other files."""
    if isinstance(source, bytes):
        header = source[:12]
    else:
        with Path(os.fsdecode(source)).open("rb") as file:
            header = file.read(12)
    return header[8:] if header[4:8] == b"ftyp" else b""


def _known_suffixes() -> frozenset[str]:
    """The suffixes that are taken for pictures without opening the file."""
    from PIL import Image, features

    known = SUFFIXES | ({".avif"} if "avif" in features.get_supported() else set())
    return known | (HEIF_SUFFIXES if "HEIF" in Image.OPEN or find_spec("pillow_heif") else set())


def _reason_against(entry: os.DirEntry[str], suffixes: frozenset[str]) -> str | None:
    """Why an entry of a folder is no picture, or None if it is one."""
    try:
        if entry.is_dir():
            return "a folder: pictures in it are not read"
        regular = entry.is_file()
    except OSError:  # links in a circle
        regular = False
    dangling = not regular and not Path(entry.path).exists()
    if Path(entry.name).suffix.lower() in suffixes and (regular or dangling):
        return None
    if not regular:
        return "a link to nothing" if dangling else "not a regular file"
    return _reason_by_content(entry.path)


def _reason_by_content(path: str) -> str | None:
    from PIL import Image

    try:
        with open_picture(path) as opened:
            return f"Pillow does not decode {opened.format} files" if opened.format in HEADERS_ONLY else None
    except MemoryError:
        raise
    except Image.DecompressionBombError:  # a picture, but a large one, which is reported when it is read
        return None
    except Exception as error:  # as many types as there are decoders
        return None if is_metadata_limit(error) else getattr(error, "strerror", None) or reason_of(error)


def _no_pictures(folder: Path, passed_over: Sequence[PassedOver], recursive: bool) -> str:
    found = f"; {describe(passed_over)}" if passed_over else ""
    subfolders = "" if recursive else " (its subfolders are not read)"
    return (
        f"{folder} holds no pictures{subfolders}: expected files in a format that Pillow knows, such as .jpg or "
        f".png{found}"
    )
