"""Known numbers, stored as each format's specification says, become the colours that they stand for."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk.pictures import read_picture
from tests.helpers.picture_bytes import PNG_CHANNELS, bmp, chunk, packed_rows, png, tiff

HEIGHT, WIDTH = 7, 11
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, SEPARATED, YCBCR = 0, 1, 2, 3, 5, 6
BITS, COLOUR_MAP, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 320, 338, 339


def random_numbers(bits: int, channels: int = 1, least: int = 0) -> NDArray[np.int64]:
    """Numbers of all sizes, the smallest and the largest among them."""
    numbers = np.random.default_rng(bits).integers(least, 1 << bits, (HEIGHT, WIDTH, channels), dtype=np.int64)
    numbers[0, 0], numbers[0, 1] = least, (1 << bits) - 1
    return numbers


def read(data: bytes) -> NDArray[np.int64]:
    return read_picture(data, HEIGHT, WIDTH, "it").astype(np.int64)


def shown(numbers: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """The colours of numbers where 0 is black, 0..255 [H, W, 3]."""
    return np.broadcast_to(numbers * 255 / ((1 << bits) - 1), (HEIGHT, WIDTH, 3))


def over_white(colours: NDArray[np.float64], alpha: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours 0..255 with an alpha of 0..1, laid over white."""
    return np.broadcast_to(colours * alpha + 255 * (1 - alpha), (HEIGHT, WIDTH, 3))


def random_palette(colours: int, seed: int = 3) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 256, (colours, 3), dtype=np.int64)


def near(found: NDArray[np.int64], expected: NDArray[Any], within: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=within)


# How far apart two right answers are: up to 8 bits, colours are whole numbers of 0..255 and exact; deeper ones may be
# rounded down or to the nearest; with transparency, the alpha and the mixed colour are rounded, too.
def tolerance(bits: int, alpha: bool = False) -> float:
    return (0.01 if bits <= 8 else 1) + alpha


# PNG


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour_type", "bits"),
    [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (4, 8), (4, 16), (6, 8), (6, 16)],
)
def test_png_of_every_colour_type(colour_type: int, bits: int, interlaced: bool) -> None:
    numbers = random_numbers(bits, PNG_CHANNELS[colour_type])
    expected = shown(numbers, bits)[..., :1] if colour_type == 0 else None
    if colour_type in (4, 6):
        expected = over_white(shown(numbers[..., :-1], bits), numbers[..., -1:] / ((1 << bits) - 1))
    elif colour_type == 2:
        expected = shown(numbers, bits)
    assert expected is not None
    found = read(png(numbers, bits, colour_type, interlaced=interlaced))
    near(found, np.broadcast_to(expected, found.shape), tolerance(bits, colour_type >= 4))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_with_a_palette(bits: int, interlaced: bool) -> None:
    numbers, palette = random_numbers(bits), random_palette(1 << bits)
    colours = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    near(read(png(numbers, bits, 3, colours, interlaced=interlaced)), palette[numbers[..., 0]], 0)
    alpha = np.random.default_rng(9).integers(0, 256, 1 << bits)
    clear = chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    expected = over_white(palette[numbers[..., 0]].astype(float), alpha[numbers] / 255)
    near(read(png(numbers, bits, 3, colours + clear)), expected, 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (3, 4)])
def test_png_with_a_transparent_shade(bits: int, place: tuple[int, int]) -> None:
    numbers = random_numbers(bits)
    shade = int(numbers[place][0])
    expected = np.where(numbers == shade, 255, shown(numbers, bits))
    near(read(png(numbers, bits, 0, chunk(b"tRNS", struct.pack(">H", shade)))), expected, tolerance(bits))


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_a_transparent_colour(bits: int) -> None:
    numbers = random_numbers(bits, 3)
    numbers[2, 3] = numbers[4, 5] = numbers[6, 7]
    expected = np.where((numbers == numbers[2, 3]).all(-1, keepdims=True), 255, shown(numbers, bits))
    clear = struct.pack(">3H", *(int(number) for number in numbers[2, 3]))
    near(read(png(numbers, bits, 2, chunk(b"tRNS", clear))), expected, tolerance(bits))


# TIFF


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(
    ("order", "bits", "photometric"),
    [
        *((order, bits, photometric) for order in "<>" for bits in (1, 2, 4, 8) for photometric in (0, 1)),
        ("<", 16, MIN_IS_WHITE),
        ("<", 16, MIN_IS_BLACK),
        (">", 16, MIN_IS_BLACK),
        ("<", 12, MIN_IS_BLACK),
    ],
)
def test_tiff_of_grey(order: str, bits: int, photometric: int, deflated: bool) -> None:
    if deflated and bits == 12:
        pytest.skip("Pillow does not decode compressed grey of 12 bits")
    numbers = random_numbers(bits)
    black_is_zero = numbers if photometric == MIN_IS_BLACK else (1 << bits) - 1 - numbers
    found = read(tiff(numbers, bits, photometric, order, deflated=deflated))
    near(found, shown(black_is_zero, bits), tolerance(bits))


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_negative_and_its_positive_are_the_same_picture(bits: int) -> None:
    numbers = random_numbers(bits)
    negative = tiff((1 << bits) - 1 - numbers, bits, MIN_IS_WHITE)
    np.testing.assert_array_equal(read(negative), read(tiff(numbers, bits, MIN_IS_BLACK)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [MIN_IS_WHITE, MIN_IS_BLACK])
@pytest.mark.parametrize("highest", [1, 255])
def test_tiff_of_floats(order: str, photometric: int, highest: int) -> None:
    numbers = np.random.default_rng(4).random((HEIGHT, WIDTH, 1)) * highest
    numbers[0, :2, 0] = 0, highest
    expected = numbers * 255 / highest
    found = read(tiff(numbers.astype(np.float32), 32, photometric, order, {SAMPLE_FORMAT: (3,)}))
    near(found, np.broadcast_to(255 - expected if photometric == MIN_IS_WHITE else expected, found.shape), 0.51)


@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_of_signed_numbers_of_16_bits(order: str) -> None:
    """Their largest is white; none is darker than 0."""
    numbers = random_numbers(15, least=-(1 << 15)).astype(np.int16)
    found = read(tiff(numbers, 16, MIN_IS_BLACK, order, {SAMPLE_FORMAT: (2,)}))
    near(found, shown(numbers.clip(0).astype(np.int64), 15), 1)


@pytest.mark.parametrize("sample_format", [1, 2])
def test_tiff_of_numbers_of_32_bits(sample_format: int) -> None:
    """Read as numbers of 16 bits; larger ones are white."""
    numbers = random_numbers(16)
    numbers[1, :3, 0] = 1 << 16, 1 << 30, (1 << 31) - 1
    if sample_format == 1:
        numbers[1, 3, 0] = (1 << 32) - 1
    stored = numbers.astype(np.uint32 if sample_format == 1 else np.int32)
    found = read(tiff(stored, 32, MIN_IS_BLACK, tags={SAMPLE_FORMAT: (sample_format,)}))
    near(found, shown(numbers.clip(0, 65535), 16), 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_of_colours(order: str, bits: int) -> None:
    numbers = random_numbers(bits, 3)
    near(read(tiff(numbers, bits, RGB, order)), shown(numbers, bits), tolerance(bits))
    inks = random_numbers(bits, 4)
    left = 1 - inks / ((1 << bits) - 1)  # of the light
    near(read(tiff(inks, bits, SEPARATED, order)), left[..., :3] * left[..., 3:] * 255, 1 + tolerance(bits))


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("channels", [2, 4])
def test_tiff_with_alpha(channels: int, kind: int) -> None:
    """Of kind 1, colours are stored multiplied by their alpha; of kind 2, they are not."""
    numbers = random_numbers(8, channels)
    alpha = numbers[..., -1:] / 255
    if kind == 1:
        numbers[..., :-1] = np.floor(numbers[..., :-1] * alpha)
        expected = np.broadcast_to(numbers[..., :-1] + 255 * (1 - alpha), (HEIGHT, WIDTH, 3))
    else:
        expected = over_white(numbers[..., :-1].astype(float), alpha)
    data = tiff(numbers, 8, RGB if channels == 4 else MIN_IS_BLACK, tags={EXTRA_SAMPLES: (kind,)})
    near(read(data), expected, 1.5 if kind == 1 else 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_tiff_with_a_palette(order: str, bits: int) -> None:
    numbers, palette = random_numbers(bits), random_palette(1 << bits)
    colours = tuple(int(number) * 257 for number in palette.T.ravel())
    near(read(tiff(numbers, bits, PALETTE, order, {COLOUR_MAP: colours})), palette[numbers[..., 0]], 0)


# BMP, and the formats of Netpbm


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_bmp_with_a_palette(bits: int) -> None:
    numbers, palette = random_numbers(bits), random_palette(1 << bits)
    near(read(bmp(numbers, bits, palette)), palette[numbers[..., 0]], 0)


@pytest.mark.parametrize("bits", [24, 32])
def test_bmp_of_colours(bits: int) -> None:
    numbers = random_numbers(8, bits // 8)
    near(read(bmp(numbers, bits)), numbers[..., 2::-1], 0)


@pytest.mark.parametrize(("green", "masks"), [(5, ()), (6, (0xF800, 0x07E0, 0x001F))])
def test_bmp_of_16_bits(green: int, masks: tuple[int, ...]) -> None:
    red, blue = random_numbers(5), random_numbers(5)[::-1]
    leaf = random_numbers(green)
    numbers = (red << (5 + green)) | (leaf << 5) | blue
    expected = np.concatenate([red * 255 / 31, leaf * 255 / ((1 << green) - 1), blue * 255 / 31], axis=2)
    near(read(bmp(numbers.astype(np.uint16), 16, masks=masks)), expected, 1)


@pytest.mark.parametrize(
    ("kind", "highest", "channels"),
    [(5, 255, 1), (5, 15, 1), (5, 65535, 1), (5, 1023, 1), (6, 255, 3), (6, 15, 3), (6, 65535, 3), (6, 1023, 3)],
)
def test_netpbm(kind: int, highest: int, channels: int) -> None:
    bits = highest.bit_length()
    numbers = random_numbers(bits, channels)
    stored = packed_rows(numbers.astype(np.uint16 if bits > 8 else np.uint8), 16 if bits > 8 else 8)
    plain = b" ".join(b"%d" % number for number in numbers.ravel())
    for magic, body in ((kind, b"".join(stored)), (kind - 3, plain + b"\n")):
        data = b"P%d\n%d %d\n%d\n" % (magic, WIDTH, HEIGHT, highest) + body
        near(read(data), shown(numbers, bits), 1)


def test_bitmaps_of_netpbm() -> None:
    numbers = random_numbers(1)  # 1 is black
    plain = b" ".join(b"%d" % number for number in numbers.ravel()) + b"\n"
    for magic, body in ((4, b"".join(packed_rows(numbers, 1))), (1, plain)):
        near(read(b"P%d\n%d %d\n" % (magic, WIDTH, HEIGHT) + body), shown(1 - numbers, 1), 0)
