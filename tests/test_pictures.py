"""Decoding: every kind of picture becomes the same RGB pixels, and every broken one an error that names it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin, features

from camp_sdk import InputError, pictures
from camp_sdk.picture_files import find_pictures
from camp_sdk.pictures import PictureError, normalise, read_picture, read_shrunk, upright_size
from camp_sdk.runtime.manifest import FITS, PixelSpec

ORIENTATION = 0x0112
needs_avif = pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow was built without AVIF")


def drawn() -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A picture that looks different everywhere, without details that a JPEG would lose."""
    coarse = np.random.default_rng(6).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def orientated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


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


def grey16(value: int, dtype: str) -> Image.Image:
    return Image.fromarray(np.full((2, 2), value, dtype))


def palette(**info: Any) -> Image.Image:
    picture = Image.new("P", (2, 2), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.info.update(info)
    return picture


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "WEBP", "JPEG", pytest.param("AVIF", marks=needs_avif)])
@pytest.mark.parametrize(("mode", "colour"), [("RGB", (200, 20, 90)), ("L", 77), ("1", 1), ("P", 0)])
def test_common_modes_in_every_format(kind: str, mode: str, colour: Any) -> None:
    picture = palette() if mode == "P" else Image.new(mode, (16, 16), colour)
    if kind == "JPEG" and mode == "P":
        picture = picture.convert("RGB")
    expected = np.array(picture.convert("RGB").getpixel((0, 0)))
    lossy = {"JPEG": {"quality": 100, "subsampling": 0}, "AVIF": {"quality": 100}, "WEBP": {"lossless": True}}
    data = encoded(picture, kind, **lossy.get(kind, {}))
    assert Image.open(io.BytesIO(data)).format == kind
    np.testing.assert_allclose(pixel(data), expected, atol=3 if kind in ("JPEG", "AVIF") else 0)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", pytest.param("AVIF", marks=needs_avif)])
@pytest.mark.parametrize(("alpha", "expected"), [(0, 255), (51, 204), (255, 0)])
def test_alpha_in_every_format_that_has_it(kind: str, alpha: int, expected: int) -> None:
    picture = Image.new("RGBA", (16, 16), (0, 0, 0, alpha))
    data = encoded(picture, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    np.testing.assert_allclose(pixel(data), [expected] * 3, atol=1)


@pytest.mark.parametrize(
    ("picture", "kind", "expected"),
    [
        pytest.param(grey16(128 * 257, "<u2"), "PNG", [128] * 3, id="16-bit grey PNG"),
        pytest.param(grey16(128 * 257, "<u2"), "TIFF", [128] * 3, id="16-bit grey TIFF"),
        pytest.param(grey16(128 * 257, ">u2"), "TIFF", [128] * 3, id="16-bit grey TIFF, big-endian"),
        pytest.param(grey16(128 * 257, "<i4"), "TIFF", [128] * 3, id="16 bits in 32, TIFF"),
        pytest.param(grey16(1 << 20, "<i4"), "TIFF", [255] * 3, id="more than 16 bits are cut"),
        pytest.param(Image.new("F", (2, 2), 0.5), "TIFF", [128] * 3, id="float 0..1"),
        pytest.param(Image.new("F", (2, 2), 100.4), "TIFF", [100] * 3, id="float 0..255"),
        pytest.param(Image.new("F", (2, 2), float("nan")), "TIFF", [0] * 3, id="float NaN"),
        pytest.param(Image.new("LA", (2, 2), (0, 51)), "PNG", [204] * 3, id="grey and alpha"),
        pytest.param(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF", [0, 255, 255], id="CMYK TIFF"),
        pytest.param(
            Image.new("YCbCr", (2, 2), (76, 85, 255)),
            "TIFF",
            [254, 0, 0],
            id="YCbCr TIFF",
            marks=pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 12 reads none of its own"),
        ),
        pytest.param(Image.new("LAB", (2, 2), (137, 128, 128)), "TIFF", [128, 128, 128], id="LAB TIFF"),
        pytest.param(palette(transparency=1), "GIF", [255] * 3, id="transparent GIF"),
        pytest.param(palette(transparency=0), "GIF", [10, 20, 30], id="another colour is transparent, GIF"),
        pytest.param(palette(transparency=bytes([255, 51])), "PNG", [206, 208, 210], id="palette with alpha"),
    ],
)
def test_rarer_modes(picture: Image.Image, kind: str, expected: list[int]) -> None:
    data = encoded(picture, kind)
    np.testing.assert_allclose(pixel(data), expected, atol=1)
    np.testing.assert_array_equal(pixel(Image.open(io.BytesIO(data))), pixel(data))


@pytest.mark.parametrize(("clear", "expected"), [(128 * 257, 255), (5, 128)])
def test_sixteen_bit_grey_with_a_transparent_shade(clear: int, expected: int) -> None:
    assert pixel(encoded(grey16(128 * 257, "<u2"), "PNG", transparency=clear)) == [expected] * 3


def test_sixteen_bit_colour() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0))
    row = zlib.compress(b"\0" + struct.pack(">HHH", 10 * 257, 20 * 257, 30 * 257))
    assert pixel(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", row) + chunk(b"IEND", b"")) == [10, 20, 30]


def jpeg_of_four(channels: tuple[int, int, int, int], transform: int) -> bytes:
    """A JPEG that stores these four numbers, with Adobe's mark of what they are: 0 CMYK, 2 YCCK.

    Both are inverted, as Photoshop writes them: 255 is no ink, and Y, Cb, Cr are of the inverse of red, green and blue.
    """
    stored = tuple(255 - value for value in channels)  # Pillow inverts what it writes
    data = encoded(Image.new("CMYK", (16, 16), stored), "JPEG", quality=100)
    mark = data.index(b"Adobe") + 11
    assert data[mark] == 0
    return data[:mark] + bytes([transform]) + data[mark + 1 :]


@pytest.mark.parametrize(
    ("channels", "transform", "expected"),
    [
        pytest.param((0, 255, 255, 255), 0, [0, 255, 255], id="CMYK: all of the cyan"),
        pytest.param((255, 255, 255, 55), 0, [55, 55, 55], id="CMYK: grey by black alone"),
        pytest.param((179, 171, 1, 255), 2, [255, 0, 0], id="YCCK: red"),
        pytest.param((0, 128, 128, 55), 2, [55, 55, 55], id="YCCK: grey by black alone"),
    ],
)
def test_jpegs_of_four_inks(channels: tuple[int, int, int, int], transform: int, expected: list[int]) -> None:
    np.testing.assert_allclose(pixel(jpeg_of_four(channels, transform)), expected, atol=2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_of_several_frames_the_first(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    np.testing.assert_allclose(pixel(data), [255, 0, 0], atol=3 if kind == "AVIF" else 0)


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
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("fit", FITS)
def test_exif_orientation_is_applied(kind: str, orientation: int, fit: str) -> None:
    stored = Image.fromarray(turned(drawn(), orientation))
    data = encoded(stored, kind, exif=orientated(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    for height, width in ((6, 9), (5, 4), (7, 20)):
        expected = read_picture(drawn(), height, width, "it", fit)
        np.testing.assert_array_equal(read_picture(data, height, width, "it", fit), expected)
        opened = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(read_picture(opened, height, width, "it", fit), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", pytest.param("AVIF", marks=needs_avif)])
def test_exif_orientation_in_lossy_formats(kind: str, orientation: int) -> None:
    upright = np.asarray(smooth(48, 32))
    data = encoded(
        Image.fromarray(turned(upright, orientation)),
        kind,
        exif=orientated(orientation),
        quality=100,
        subsampling="4:4:4",
    )
    np.testing.assert_allclose(read_picture(data, 32, 48, "it").astype(int), upright, atol=12)


# Fit


def test_letterbox_shows_all_of_it_on_white() -> None:
    wide = read_picture(drawn(), 12, 9, "it", "letterbox")
    np.testing.assert_array_equal(wide[3:9], drawn())
    assert (wide[:3] == 255).all()
    assert (wide[9:] == 255).all()
    high = read_picture(drawn(), 6, 12, "it", "letterbox")
    np.testing.assert_array_equal(high[:, 1:10], drawn())
    assert (np.delete(high, slice(1, 10), axis=1) == 255).all()


def test_letterbox_scales_before_it_adds_margins() -> None:
    inner = read_picture(drawn(), 12, 18, "it")
    np.testing.assert_array_equal(read_picture(drawn(), 20, 18, "it", "letterbox")[4:16], inner)


def test_crop_cuts_the_middle_out() -> None:
    np.testing.assert_array_equal(read_picture(drawn(), 6, 3, "it", "crop"), drawn()[:, 3:6])
    np.testing.assert_array_equal(read_picture(drawn(), 2, 9, "it", "crop"), drawn()[2:4])


def test_crop_scales_to_cover() -> None:
    covering = read_picture(drawn(), 12, 18, "it")
    np.testing.assert_array_equal(read_picture(drawn(), 12, 10, "it", "crop"), covering[:, 4:14])


@pytest.mark.parametrize("fit", FITS)
def test_a_picture_of_the_right_proportions_is_the_same_in_every_fit(fit: str) -> None:
    np.testing.assert_array_equal(read_picture(drawn(), 4, 6, "it", fit), read_picture(drawn(), 4, 6, "it"))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 400, 3), (400, 1, 3), (3, 7, 3)])
def test_every_proportion_fits(fit: str, shape: tuple[int, ...]) -> None:
    pixels = read_picture(np.full(shape, 7, np.uint8), 5, 6, "it", fit)
    assert (pixels.shape, pixels.dtype) == ((5, 6, 3), np.uint8)
    assert (pixels == 7).any()


def test_an_unknown_fit() -> None:
    with pytest.raises(InputError, match="fit is 'zoom': expected one of stretch, letterbox, crop"):
        read_picture(drawn(), 4, 4, "it", "zoom")


# Large JPEGs are decoded small


def needed(width: int, height: int, side: int, fit: str) -> tuple[float, float]:
    """What a picture is scaled to before margins are added or the middle is cut out."""
    across, down = side / width, side / height
    scales = {"stretch": (across, down), "letterbox": (min(across, down),) * 2, "crop": (max(across, down),) * 2}[fit]
    return width * scales[0], height * scales[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_decoded_small_is_the_same_picture(
    monkeypatch: pytest.MonkeyPatch, mode: str, fit: str, orientation: int
) -> None:
    stored = Image.fromarray(turned(np.asarray(smooth(603, 397)), orientation)).convert(mode)
    data = encoded(stored, "JPEG", quality=95, exif=orientated(orientation))
    decoded: list[tuple[int, int]] = []
    flatten = pictures.flatten
    monkeypatch.setattr(
        pictures, "flatten", lambda picture, *how: (decoded.append(picture.size), flatten(picture, *how))[1]
    )
    for side in (20, 40, 90, 150):
        small = read_picture(data, side, side, "it", fit)
        assert all(got >= 2 * need for got, need in zip(decoded[-1], needed(603, 397, side, fit), strict=True))
        with monkeypatch.context() as undrafted:
            undrafted.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda self, mode, size: None)
            whole = read_picture(data, side, side, "it", fit)
        assert decoded[-1] == (603, 397)
        difference = np.abs(small.astype(int) - whole)
        assert (difference.max(), difference.mean() < 0.5) <= (4, True)
    assert decoded[0] == (76, 50)  # an eighth, and a part of a pixel at the end of both sides


def test_hard_edges_decoded_small_differ_by_what_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = np.kron(np.indices((60, 80)).sum(0) % 2 * 255, np.ones((10, 10))).astype(np.uint8)
    data = encoded(Image.fromarray(blocks), "JPEG", quality=90)
    small = read_picture(data, 45, 45, "it", "letterbox").astype(int)
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda self, mode, size: None)
    difference = np.abs(small - read_picture(data, 45, 45, "it", "letterbox"))
    assert (difference.max() <= 14, difference.mean() <= 3) == (True, True)


@pytest.mark.parametrize("tag", [0x010E, 0x9003, 0x0132])
def test_odd_exif_does_not_matter(tag: int) -> None:
    exif = orientated(6)
    exif[tag] = "text"
    data = bytearray(encoded(Image.fromarray(turned(drawn(), 6)), "PNG", exif=exif))
    expected = read_picture(bytes(data), 6, 9, "it")
    block = exif.tobytes()
    for place in range(8, len(block)):  # one byte of the block at a time
        broken = block[:place] + bytes([block[place] ^ 0xFF]) + block[place + 1 :]
        picture = encoded(Image.fromarray(turned(drawn(), 6)), "PNG", exif=broken)
        assert read_picture(picture, 6, 9, "it").shape == expected.shape


def test_the_callers_own_jpeg_is_not_decoded_small() -> None:
    data = encoded(smooth(400, 300), "JPEG")
    opened = Image.open(io.BytesIO(data))
    pixels = read_picture(opened, 20, 20, "it")
    assert opened.size == (400, 300)
    np.testing.assert_array_equal(pixels, read_picture(opened.convert("RGB"), 20, 20, "it"))


def test_path_string_bytes_picture_and_array_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "it.png"
    Image.fromarray(drawn()).save(path)
    with Image.open(path) as opened:
        forms = [path, str(path), path.read_bytes(), opened, Image.fromarray(drawn()), drawn()]
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
def test_what_is_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    for form in (tmp_path / "bad.png", content):
        with pytest.raises(InputError, match=r"the third one cannot be read as a picture: .*format that Pillow knows"):
            read_picture(form, 4, 4, "the third one")


def test_any_error_of_a_decoder_names_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Image.Image) -> None:
        raise RuntimeError

    data = encoded(Image.fromarray(drawn()), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(InputError, match="the third one cannot be read as a picture: RuntimeError"):
        read_picture(data, 4, 4, "the third one")


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
        pytest.param(io.StringIO("text"), "file opened as text", id="text file"),
    ],
)
def test_something_else_than_a_picture(picture: Any, found: str) -> None:
    with pytest.raises(InputError, match=rf"image 3 is a {found}: expected a path"):
        read_picture(picture, 4, 4, "image 3")


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3)])
def test_an_array_without_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="image 3"):
        read_picture(np.zeros(shape, np.uint8), 4, 4, "image 3")


def test_too_many_pixels() -> None:
    with pytest.raises(InputError, match="it has 9 x 6 pixels: at most 5e-05 megapixels are decoded"):
        read_picture(drawn(), 4, 4, "it", max_megapixels=50e-6)
    assert read_picture(drawn(), 4, 4, "it", max_megapixels=54e-6).shape == (4, 4, 3)


def claiming(side: int) -> bytes:
    """The header of a large PNG, with no pixels behind it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b""))


def test_a_file_that_claims_too_many_pixels_is_not_decoded() -> None:
    with pytest.raises(InputError, match="it has 9000 x 9000 pixels: at most 80 megapixels are decoded"):
        read_picture(claiming(9000), 4, 4, "it")
    with pytest.raises(InputError, match="it has 2000 x 2000 pixels: at most 3 megapixels are decoded"):
        read_picture(claiming(2000), 4, 4, "it", max_megapixels=3)
    with pytest.raises(InputError, match="it cannot be read as a picture"):
        read_picture(claiming(2000), 4, 4, "it", max_megapixels=5)


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_what_is_beyond_pillows_own_limits(side: int) -> None:
    with pytest.raises(InputError, match=r"it cannot be read as a picture: .* exceeds limit"):
        read_picture(claiming(side), 4, 4, "it")


@needs_avif
def test_find_pictures_knows_avif_where_pillow_does(tmp_path: Path) -> None:
    (tmp_path / "a.avif").touch()
    assert find_pictures(tmp_path).paths == [tmp_path / "a.avif"]


def test_find_pictures_sorts_and_knows_suffixes(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", "c.txt", "d"):
        (tmp_path / name).touch()
    assert find_pictures(tmp_path).paths == [tmp_path / "a.jpg", tmp_path / "b.PNG"]


def test_find_pictures_takes_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert find_pictures(tmp_path).paths == [tmp_path / "a.png"]


def test_find_pictures_in_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"holds no pictures .*: expected files in a format that Pillow knows, .*\.png$"
    ):
        find_pictures(tmp_path)


def test_find_pictures_in_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone is not a folder"):
        find_pictures(tmp_path / "gone")


def test_postscript_is_not_run(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "picture.eps")
    for picture in (tmp_path / "picture.eps", (tmp_path / "picture.eps").read_bytes()):
        with pytest.raises(InputError, match="it is in no format that Pillow knows"):
            read_picture(picture, 4, 4, "it")


# In their own proportions


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "size"), [("PNG", (90, 40)), ("JPEG", (900, 400))])
def test_a_shrunk_picture_is_upright_in_its_own_proportions(form: str, size: tuple[int, int], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    ramp = np.linspace(0, 255, size[0])[None, :, None] * np.linspace(0.5, 1, size[1])[:, None, None]
    image = Image.fromarray(ramp.repeat(3, axis=2).astype(np.uint8))
    stream = io.BytesIO()
    image.save(stream, form, exif=exif, quality=95)
    turned = orientation > 4
    upright = size[::-1] if turned else size
    assert upright_size(stream.getvalue(), "it") == upright
    small = read_shrunk(stream.getvalue(), 30, "it")
    assert small.shape == ((30, 13, 3) if turned else (13, 30, 3))
    whole = read_picture(stream.getvalue(), *small.shape[:2], "it")
    assert np.abs(small.astype(int) - whole).max() <= 3  # of a JPEG that was decoded at another scale
    assert read_shrunk(stream.getvalue(), 1000, "it").shape == (*upright[::-1], 3)  # never enlarged


def test_a_picture_of_one_row_is_shrunk_to_one_row() -> None:
    assert read_shrunk(np.zeros((1, 500, 3), np.uint8), 50, "it").shape == (1, 50, 3)


def test_the_size_of_a_picture_is_limited_and_a_broken_one_has_none() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    assert upright_size(picture, "it", 0.01) == (100, 100)
    for function in (upright_size, lambda *arguments: read_shrunk(arguments[0], 8, *arguments[1:])):
        with pytest.raises(PictureError, match="it has 100 x 100 pixels"):
            function(picture, "it", 0.009)
        with pytest.raises(PictureError, match="it cannot be read"):
            function(b"no picture", "it")
