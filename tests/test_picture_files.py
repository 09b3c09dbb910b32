"""Opening picture files: what is damaged is refused, what is merely unusual is read, and a folder is told apart."""

from __future__ import annotations

import io
import os
import random
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from camp_sdk import InputError, picture_files
from camp_sdk.picture_files import FoundPictures, PassedOver, describe, find_pictures
from camp_sdk.pictures import PictureError, read_picture
from tests.helpers.picture_bytes import chunk, png

ORIENTATION = 0x0112
PIXELS = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def upside_down() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    return exif


def read(picture: Any) -> NDArray[np.uint8]:
    return read_picture(picture, 6, 9, "it")


# Damaged files

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "PNG": ("PNG", {}),
    "turned PNG": ("PNG", {"exif": upside_down()}),
    "LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF": ("TIFF", {}),
    "GIF": ("GIF", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True, "exif": upside_down()}),
    "BMP": ("BMP", {}),
    "JPEG": ("JPEG", {"exif": upside_down()}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
}


def damaged(data: bytes, seed: str) -> bytes:
    """One to eight bytes replaced, every other time in the first 64."""
    chance, changed = random.Random(seed), bytearray(data)
    among = chance.choice((len(data), 64))
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(among)] ^= chance.randrange(1, 256)
    return bytes(changed)


def fails_in_pillow(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
    except Exception:  # decoders raise a dozen types
        return True
    return False


def fails(picture: Any) -> bool:
    try:
        read_picture(picture, 16, 16, "it", max_megapixels=1)
    except PictureError:
        return True
    return False


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
@pytest.mark.parametrize("kind", KINDS)
def test_what_pillow_refuses_is_refused(kind: str) -> None:
    name, options = KINDS[kind]
    drawn = Image.fromarray(PIXELS).resize((96, 64), Image.Resampling.BICUBIC)
    whole = encoded(drawn, name, **options)
    refused = 0
    for seed in range(60):
        data = damaged(whole, f"{kind} {seed}")
        if fails_in_pillow(data):
            refused += 1
            assert fails(data), seed
    assert refused >= 3


@pytest.mark.parametrize("kind", ["PNG", "LZW", "GIF"])
def test_an_opened_picture_that_failed_fails_again(kind: str) -> None:
    name, options = KINDS[kind]
    whole = encoded(Image.fromarray(PIXELS).resize((96, 64)), name, **options)
    tried = 0
    for seed in range(40):
        data = damaged(whole, f"again {kind} {seed}")
        try:
            opened = Image.open(io.BytesIO(data))
        except Exception:  # refused by its header
            continue
        with opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if fails(opened):
                tried += 1
                assert fails(opened)
                assert fails(opened)
    assert tried >= 3


def test_the_frames_after_a_damaged_one_are_read() -> None:
    frames = [Image.new("RGB", (16, 16), (seed, 0, 0)) for seed in (10, 20)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:], compression="tiff_adobe_deflate")
    first = data.index(zlib.compress(b"")[:1])
    with Image.open(io.BytesIO(data[: first + 4] + b"\xff\xff" + data[first + 6 :])) as film:
        for _ in range(2):
            film.seek(0)
            assert fails(film)
            film.seek(1)
            assert read(film)[0, 0].tolist() == [20, 0, 0]


def test_one_flipped_byte_of_a_png_is_named() -> None:
    data = encoded(Image.fromarray(PIXELS).resize((96, 64)), "PNG")
    place = data.index(b"IDAT") + 400
    with pytest.raises(PictureError, match=r"^it cannot be read as a picture: .* when reading image file$"):
        read(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


# Large metadata in PNG

XMP = b'<rdf:Description tiff:Orientation="3"/>'
MUCH = b"x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK)
LARGE = {
    "profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(MUCH)),
    "packed text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MUCH)),
    "international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(MUCH)),
    "many texts": b"".join(chunk(b"zTXt", b"%d\0\0" % number + zlib.compress(MUCH[::2])) for number in range(65)),
}
PROFILE = f"\nexif\n      {len(upside_down().tobytes())}\n{upside_down().tobytes().hex()}\n".encode()
TURNED = {
    "eXIf": chunk(b"eXIf", upside_down().tobytes()[6:]),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    "packed profile": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "profile": chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE),
}


@pytest.mark.parametrize("large", LARGE)
@pytest.mark.parametrize("after", [False, True])
def test_large_metadata_do_not_matter(large: str, after: bool) -> None:
    data = png(PIXELS, 8, 2, *([b"", LARGE[large]] if after else [LARGE[large], b""]))
    assert fails_in_pillow(data)
    np.testing.assert_array_equal(read(data), PIXELS)


@pytest.mark.parametrize("turned", TURNED)
@pytest.mark.parametrize("after", [False, True])
def test_the_orientation_is_kept_beside_large_metadata(turned: str, after: bool) -> None:
    beside = [b"", TURNED[turned]] if after else [TURNED[turned], b""]
    for large in (b"", LARGE["profile"]):
        np.testing.assert_array_equal(read(png(PIXELS, 8, 2, large + beside[0], beside[1])), PIXELS[::-1, ::-1])


def test_large_metadata_behind_the_pixels_of_an_opened_picture() -> None:
    with Image.open(io.BytesIO(png(PIXELS, 8, 2, after=LARGE["packed text"]))) as opened:
        for _ in range(2):
            np.testing.assert_array_equal(read(opened), PIXELS)


@pytest.mark.parametrize("after", [False, True])
def test_a_damaged_picture_with_large_metadata_is_refused(tmp_path: Path, after: bool) -> None:
    beside = [b"", LARGE["packed text"]] if after else [LARGE["packed text"], b""]
    data = png(PIXELS, 8, 2, *beside)
    place = data.index(b"IDAT") + 30
    data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
    (tmp_path / "it.png").write_bytes(data)
    for form in (data, tmp_path / "it.png"):
        assert fails(form)
    if after:
        with Image.open(io.BytesIO(data)) as opened:
            assert [fails(opened) for _ in range(3)] == [True] * 3


def test_a_palette_that_is_too_long_beside_large_metadata() -> None:
    with pytest.raises(PictureError, match="its chunk PLTE has 1000000 bytes: expected at most 768"):
        read(png(PIXELS, 8, 2, chunk(b"PLTE", bytes(1_000_000)) + LARGE["profile"]))


# File objects, buffers and paths of any kind


class AsPath(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class Pieces:
    """A file object with nothing but `read`, which returns less than it is asked for."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def read(self, count: int) -> bytes:
        part, self.rest = self.rest[: min(count, 7)], self.rest[min(count, 7) :]
        return part


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "it.png")
    return tmp_path / "it.png"


def entry_of(path: Path) -> os.DirEntry[str]:
    with os.scandir(path.parent) as entries:
        return next(entries)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda path: io.BytesIO(path.read_bytes()), id="BytesIO"),
        pytest.param(lambda path: Pieces(path.read_bytes()), id="read alone"),
        pytest.param(AsPath, id="PathLike"),
        pytest.param(entry_of, id="DirEntry"),
        pytest.param(lambda path: bytearray(path.read_bytes()), id="bytearray"),
        pytest.param(lambda path: memoryview(path.read_bytes()), id="memoryview"),
    ],
)
def test_every_form_of_a_file(path: Path, form: Callable[[Path], Any]) -> None:
    np.testing.assert_array_equal(read(form(path)), PIXELS)


def test_a_file_object_is_read_from_where_it_stands_and_stays_open(path: Path) -> None:
    with (path.parent / "behind").open("w+b") as file:
        file.write(b"before" + path.read_bytes())
        file.seek(6)
        np.testing.assert_array_equal(read(file), PIXELS)
        assert not file.closed
        with pytest.raises(PictureError, match=r"the file object is at its end: rewind it with seek\(0\)"):
            read(file)
    with pytest.raises(PictureError, match="it cannot be read as a picture: read of closed file"):
        read(file)


def test_a_file_object_that_is_too_large(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setattr(picture_files, "MAX_FILE_BYTES", 100)
    with Path("/dev/zero").open("rb") as endless, pytest.raises(PictureError, match="holds more than"):
        read(endless)
    monkeypatch.setattr(picture_files, "MAX_FILE_BYTES", path.stat().st_size)
    np.testing.assert_array_equal(read(io.BytesIO(path.read_bytes())), PIXELS)


def test_a_file_opened_as_text(path: Path) -> None:
    with (
        path.open(encoding="latin-1") as file,
        pytest.raises(InputError, match="it is a file opened as text") as raised,
    ):
        read(file)
    assert not isinstance(raised.value, PictureError)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
@pytest.mark.parametrize("mode", ["RGB", "I;16", "F"])
def test_an_image_without_pixels(mode: str, size: tuple[int, int]) -> None:
    with pytest.raises(PictureError, match=f"it has {size[0]} x {size[1]} pixels"):
        read(Image.new(mode, size))


@pytest.mark.parametrize(
    ("mode", "stored", "expected"),
    [
        ("La", (40, 51), [244, 244, 244]),
        ("LA", (40, 51), [212, 212, 212]),
        ("RGBa", (40, 20, 0, 51), [244, 224, 204]),
        ("RGBA", (200, 100, 0, 51), [244, 224, 204]),
        ("RGBX", (200, 100, 0, 51), [200, 100, 0]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("YCbCr", (76, 85, 255), [254, 0, 0]),
        ("CMYK", (0, 255, 255, 0), [255, 0, 0]),
        ("LAB", (255, 0, 0), [255, 255, 255]),  # its raw form has signed a and b
    ],
)
def test_every_mode_that_pillow_holds(mode: str, stored: tuple[int, ...], expected: list[int]) -> None:
    np.testing.assert_allclose(read(Image.frombytes(mode, (1, 1), bytes(stored)))[0, 0], expected, atol=1)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_deep_grey_in_any_byte_order(mode: str) -> None:
    assert read(Image.new(mode, (2, 2), 0x8012))[0, 0].tolist() == [128, 128, 128]


# Folders


def fill(folder: Path, **contents: bytes) -> None:
    for name, content in contents.items():
        (folder / name.replace("_", ".")).write_bytes(content)


def test_pictures_are_found_by_content(tmp_path: Path, path: Path) -> None:
    jpeg = encoded(Image.fromarray(PIXELS), "JPEG")
    fill(
        tmp_path, x_jfif=jpeg, plain=jpeg, wrong_txt=path.read_bytes(), broken_jpg=b"", notes_txt=b"text", _hidden=jpeg
    )
    fill(tmp_path, profile=png(PIXELS, 8, 2, LARGE["profile"]), film_mpg=b"\0\0\1\xb3\x10\x01\x10" + bytes(40))
    (tmp_path / "._it.png").write_bytes(jpeg)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "gone").symlink_to("nowhere")
    Image.fromarray(PIXELS).save(tmp_path / "program.eps")
    unknown = "it is in no format that Pillow knows"
    expected = ["broken.jpg", "gone.png", "it.png", "plain", "profile", "wrong.txt", "x.jfif"]
    assert find_pictures(tmp_path) == FoundPictures(
        [tmp_path / name for name in expected],
        (
            PassedOver("film.mpg", "Pillow does not decode MPEG files"),
            PassedOver("folder.png", "a folder: pictures in it are not read"),
            PassedOver("gone", "a link to nothing"),
            PassedOver("notes.txt", unknown),
            PassedOver("program.eps", unknown),
        ),
    )


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path, path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    reason = "not a regular file"
    assert find_pictures(tmp_path).passed_over == (PassedOver("pipe", reason), PassedOver("pipe.png", reason))


def test_a_file_with_a_pictures_suffix_is_not_opened(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture_files, "open_picture", None)
    assert find_pictures(tmp_path) == FoundPictures([path])


def test_text_and_noise_are_no_pictures(tmp_path: Path, path: Path) -> None:
    chance = random.Random(7)
    for number in range(100):
        (tmp_path / f"{number}").write_bytes(chance.randbytes(300))
        (tmp_path / f"{number}.md").write_text(f"# {number}\n\nwidth 20\nheight 10\n* text\n")
    assert find_pictures(tmp_path).paths == [path]


def test_a_few_of_many_are_described() -> None:
    many = [PassedOver(f"{number}.txt", "text") for number in range(9)]
    assert describe(many) == "9 passed over: 0.txt (text); 1.txt (text); 2.txt (text); …"
    assert describe(many[:1]) == "1 passed over: 0.txt (text)"


def test_a_folder_without_pictures_tells_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(InputError, match=r"holds no pictures .*; 1 passed over: notes\.txt \(it is in no format"):
        find_pictures(tmp_path)


# HEIC, by pillow-heif


def heic(picture: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="not built for every platform")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(picture).save(buffer, quality=100, chroma=444, **options)
    return buffer.getvalue()


@pytest.fixture
def unregistered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as it is before pillow-heif is first needed."""
    Image.init()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"})


TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    6: lambda upright: np.rot90(upright, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_heic_is_turned_once(unregistered: None, orientation: int) -> None:
    upright = np.asarray(Image.fromarray(PIXELS).resize((96, 64), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNS[orientation](upright)))
    data = heic(stored, exif=exif.tobytes())
    for _ in range(2):
        np.testing.assert_allclose(read_picture(data, 64, 96, "it").astype(int), upright, atol=12)


def test_heic_is_found(unregistered: None, tmp_path: Path) -> None:
    fill(tmp_path, a_heic=b"", plain=heic(Image.fromarray(PIXELS)))
    assert find_pictures(tmp_path) == FoundPictures([tmp_path / "a.heic", tmp_path / "plain"])


def test_heic_without_its_decoder(
    unregistered: None, tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(picture_files, "find_spec", lambda name: None)
    data = b"\0\0\0\x18ftypheic" + bytes(20)
    fill(tmp_path, a_heic=data)
    reason = r"it is HEIC, which needs pillow-heif: pip install '.[heif]' (in a clone of camp-sdk)"
    assert find_pictures(tmp_path) == FoundPictures([path], (PassedOver("a.heic", reason),))
    for form in (data, tmp_path / "a.heic"):
        with pytest.raises(PictureError) as raised:
            read(form)
        assert str(raised.value) == f"it cannot be read as a picture: {reason}"


def test_a_broken_heic(unregistered: None) -> None:
    data = heic(Image.fromarray(PIXELS))
    for broken in (data[:40], data[:-30]):
        with pytest.raises(PictureError, match="it cannot be read as a picture"):
            read(broken)
