"""Decoding: every kind of picture becomes the same RGB pixels, and every broken one an error that names it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import InputError, pictures
from camp_sdk.pictures import find_pictures, normalise, read_picture
from camp_sdk.runtime.bundle import PixelSpec

ORIENTATION = 0x0112


def drawn() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def pixel(picture: Any) -> list[int]:
    return read_picture(picture, 1, 1, "it")[0, 0].tolist()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),
        ("LA", (0, 51), [204, 204, 204]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("I;16", 0, [0, 0, 0]),
        ("I;16", 65535, [255, 255, 255]),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: Any, expected: list[int]) -> None:
    assert pixel(Image.new(mode, (3, 2), colour)) == expected


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 128 * 257, np.uint16)).save(tmp_path / "grey.png")
    assert pixel(tmp_path / "grey.png") == [128, 128, 128]


def test_a_palette_picture(tmp_path: Path) -> None:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "palette.png")
    assert pixel(tmp_path / "palette.png") == [10, 20, 30]


@pytest.mark.parametrize(("mode", "colour"), [("P", 1), ("L", 7), ("RGB", (10, 20, 30))])
def test_a_transparent_colour_shows_white(tmp_path: Path, mode: str, colour: Any) -> None:
    picture = Image.new(mode, (2, 2), colour)
    if mode == "P":
        picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.save(tmp_path / "clear.png", transparency=colour)
    assert pixel(tmp_path / "clear.png") == [255, 255, 255]


def turned(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """The pixels a camera stores beside this orientation tag."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(turned(drawn(), orientation)).save(tmp_path / "camera.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "camera.png", 6, 9, "it"), drawn())


def test_path_string_picture_and_array_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    Image.fromarray(drawn()).save(path)
    with Image.open(path) as opened:
        forms = [path, str(path), opened, Image.fromarray(drawn()), drawn()]
        read = [read_picture(form, 4, 5, "it") for form in forms]
    for pixels in read[1:]:
        np.testing.assert_array_equal(pixels, read[0])


def test_a_view_of_an_array_is_read_in_its_own_order() -> None:
    np.testing.assert_array_equal(read_picture(drawn()[:, ::-1], 6, 9, "it"), drawn()[:, ::-1])


@pytest.mark.parametrize(("height", "width"), [(6, 9), (3, 5), (20, 11)])
def test_pictures_are_stretched_to_the_size(height: int, width: int) -> None:
    pixels = read_picture(drawn(), height, width, "it")
    assert (pixels.shape, pixels.dtype) == ((height, width, 3), np.uint8)


def test_the_callers_picture_stays_open_and_as_it_was(tmp_path: Path) -> None:
    Image.fromarray(drawn()).save(tmp_path / "it.png")
    with Image.open(tmp_path / "it.png") as opened:
        read_picture(opened, 2, 2, "it")
        np.testing.assert_array_equal(np.asarray(opened), drawn())


def test_normalise_scales_and_moves_the_channels() -> None:
    spec = PixelSpec(1, 2, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0), (1, 1))
    batch = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)
    expected = np.array([[[[-1, 1]], [[-1, 3]], [[0, 0.5]]]], np.float32)
    np.testing.assert_array_equal(normalise(batch, spec), expected)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_a_file_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError, match="the third one cannot be read as a picture"):
        read_picture(tmp_path / "bad.png", 4, 4, "the third one")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif", ".webp"])
def test_a_truncated_picture(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    Image.fromarray(drawn()).resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="the third one cannot be read as a picture"):
        read_picture(path, 4, 4, "the third one")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone cannot be read as a picture"):
        read_picture(tmp_path / "gone.png", 4, 4, "gone")


@pytest.mark.parametrize(
    ("picture", "found"),
    [
        pytest.param(np.zeros((4, 4, 3), np.float32), r"float32 array \(4, 4, 3\)", id="float pixels"),
        pytest.param(np.zeros((4, 4, 3), np.int64), r"int64 array \(4, 4, 3\)", id="int64 pixels"),
        pytest.param(np.zeros((4, 4), np.uint8), r"uint8 array \(4, 4\)", id="no channels"),
        pytest.param(np.zeros((4, 4, 4), np.uint8), r"uint8 array \(4, 4, 4\)", id="four channels"),
        pytest.param(np.zeros((3, 4, 5), np.uint8), r"uint8 array \(3, 4, 5\)", id="channels first"),
        pytest.param(None, "NoneType", id="nothing"),
        pytest.param(b"bytes", "bytes", id="bytes"),
    ],
)
def test_something_else_than_a_picture(picture: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"image 3 is a {found}: expected a path"):
        read_picture(picture, 4, 4, "image 3")


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)])
def test_an_array_without_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image 3"):
        read_picture(np.zeros(shape, np.uint8), 4, 4, "image 3")


def test_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 6 * 9 - 1)
    with pytest.raises(InputError, match="it has 9 x 6 pixels: at most"):
        read_picture(drawn(), 4, 4, "it")


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_file_that_claims_too_many_pixels_is_not_decoded(tmp_path: Path, side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")))
    with pytest.raises(InputError, match="it "):
        read_picture(tmp_path / "bomb.png", 4, 4, "it")


def test_find_pictures_sorts_and_knows_suffixes(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", "d"):
        (tmp_path / name).touch()
    assert find_pictures(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]


def test_find_pictures_takes_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert find_pictures(tmp_path) == [tmp_path / "a.png"]


def test_find_pictures_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no pictures: expected files ending in .*\.png"):
        find_pictures(tmp_path)


def test_find_pictures_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone is not a folder"):
        find_pictures(tmp_path / "gone")
