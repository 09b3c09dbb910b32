"""The caption and the picture of golden.npz: what the export writes, what is refused, and what `camp doctor` finds."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import Bundle, BundleError
from camp_sdk.diagnosis import check_picture
from camp_sdk.export.bundling.example_inputs import drawn, picture_example
from camp_sdk.pictures import normalise, read_picture
from camp_sdk.runtime.golden import CAPTION, PICTURE, read_golden
from camp_sdk.runtime.manifest import FITS, PixelSpec
from camp_sdk.runtime.selftest import check_caption
from camp_sdk.runtime.tokenizer import open_tokenizer
from tests.helpers.command import Camp
from tests.helpers.fake_cuda import install
from tests.helpers.golden import listed_again, with_golden
from tests.helpers.tiny import CAPTIONS


@pytest.fixture
def picture_copy(picture_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(picture_bundle, tmp_path / "pictures"))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = install(monkeypatch)
    fake.driver = False


def arrays_of(folder: Path) -> dict[str, Any]:
    with np.load(folder / "golden.npz", allow_pickle=False) as file:
        return {**file}


# What is written


def test_the_caption_and_its_tokens(feature_bundle: Path, picture_bundle: Path) -> None:
    for folder in (feature_bundle, picture_bundle):
        golden = read_golden(Bundle(folder))
        assert golden.caption == f"A{CAPTIONS[0][1:]} (Zyzzyva)!"
        assert golden.caption_tokens is not None
        tokens = open_tokenizer(Bundle(folder)).encode([golden.caption])
        assert golden.caption_tokens.tolist() == tokens.ids[0].tolist()
        assert tokens.unknown_words(0)[:2] == ("(", "Zyzzyva")


def test_the_picture_and_its_pixels(feature_bundle: Path, picture_bundle: Path) -> None:
    bundle = Bundle(picture_bundle)
    golden, spec = read_golden(bundle), bundle.manifest.pixels
    assert golden.picture is not None
    assert spec is not None
    content = golden.picture.tobytes()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), drawn(223, 113))
    pixels = normalise(read_picture(content, 96, 96, "golden", spec.fit)[None], spec)[0]
    np.testing.assert_array_equal(golden.picture_pixels, pixels)  # to the bit
    assert read_golden(Bundle(feature_bundle)).picture is None


def test_every_fit_makes_other_pixels_of_the_picture() -> None:
    """Or a program that fits wrongly would not be found out."""
    specs = [PixelSpec(96, 64, (0.5,) * 3, (0.25,) * 3, (6, 6), fit) for fit in FITS]
    made = [picture_example(spec)["picture_pixels"] for spec in specs]
    assert len({pixels.tobytes() for pixels in made}) == len(FITS)


def test_arrays_are_in_c_order(picture_bundle: Path) -> None:
    """A reader in another language need not know the other order."""
    with zipfile.ZipFile(picture_bundle / "golden.npz") as archive:
        headers = [archive.read(name)[:128] for name in archive.namelist()]
        assert {name.compress_type for name in archive.infolist()} == {zipfile.ZIP_STORED}
    assert len(headers) == 9
    assert all(b"'fortran_order': False" in header for header in headers)


# What is read


def test_bundles_without_them_are_read(bundle_copy: Path, picture_copy: Path) -> None:
    """As those of older versions."""
    golden = read_golden(with_golden(bundle_copy, **dict.fromkeys(CAPTION)))
    assert (golden.caption, golden.caption_tokens) == (None, None)
    bundle = with_golden(picture_copy, **dict.fromkeys((*CAPTION, *PICTURE)))
    golden = read_golden(bundle)
    assert (golden.picture, golden.picture_pixels) == (None, None)
    check_caption(bundle, golden)
    check_picture(bundle, golden)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"caption": None}, "KeyError"),
        ({"caption_tokens": None}, "KeyError"),
        ({"picture": None}, "KeyError"),
        ({"picture_pixels": None}, "KeyError"),
        ({"caption": np.array([0xFF], np.uint8)}, "UnicodeDecodeError"),
        ({"caption": np.zeros((2, 2), np.uint8)}, "caption has the shape"),
        ({"caption": np.zeros(40_001, np.uint8)}, "expected 1 to 40000 bytes"),
        ({"caption": np.zeros(3, np.int8)}, "caption is of type int8"),
        ({"caption_tokens": np.zeros(1025, np.int64)}, "expected 1 to 8192 bytes"),
        ({"caption_tokens": np.zeros((1, 3), np.int64)}, "caption_tokens has the shape"),
        ({"picture": np.zeros((2, 2), np.uint8)}, "picture has the shape"),
        ({"picture": np.zeros((16 << 20) + 1, np.uint8)}, "expected 1 to 16777216 bytes"),
        ({"picture_pixels": np.zeros((3, 96, 95), np.float32)}, "picture_pixels has the shape"),
        ({"picture_pixels": np.full((3, 96, 96), np.nan, np.float32)}, "not finite numbers"),
    ],
)
def test_other_arrays_are_refused(picture_copy: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError, match=f"golden.npz is not what was exported .*{reason}"):
        read_golden(with_golden(picture_copy, **changes))


# What is found


def test_a_healthy_bundle(camp: Camp, no_gpu: None, picture_bundle: Path, feature_bundle: Path) -> None:
    done = camp("doctor", picture_bundle)
    assert done.code == 0
    assert "golden caption: becomes the tokens of the export" in done.out
    assert "golden picture: becomes the pixels of the export" in done.out
    answer = json.loads(camp("doctor", feature_bundle, "--json").out)
    assert answer["bundle"]["inputs"] == [{"name": "caption", "problem": ""}]


def test_a_tokenizer_that_splits_otherwise(camp: Camp, no_gpu: None, bundle_copy: Path) -> None:
    tokenizer = json.loads((bundle_copy / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    (bundle_copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    listed_again(bundle_copy, "tokenizer.json")
    done = camp("doctor", bundle_copy)
    assert done.code == 1
    assert "golden caption: the tokenizer turns 'A small red circle above a large blue star (Zyzzyva)!'" in done.out
    assert json.loads(camp("doctor", bundle_copy, "--json").out)["healthy"] is False


def test_a_caption_without_a_word_is_a_broken_file(bundle_copy: Path) -> None:
    bundle = with_golden(bundle_copy, caption=np.frombuffer(b" ", np.uint8))
    with pytest.raises(BundleError, match=r"the caption of golden\.npz cannot be encoded"):
        check_caption(bundle, read_golden(bundle))


@pytest.mark.parametrize(("steps", "passes"), [(1, True), (2, False)])
def test_a_picture_that_is_resized_otherwise(
    camp: Camp, no_gpu: None, picture_copy: Path, steps: int, passes: bool
) -> None:
    """Rounding by one step of 255 is harmless; more is another filter."""
    pixels = arrays_of(picture_copy)["picture_pixels"].copy()
    pixels[2, 50, 50] += steps / 255 / 0.5  # the standard deviation of blue
    with_golden(picture_copy, picture_pixels=pixels)
    done = camp("doctor", picture_copy)
    assert done.code == (0 if passes else 1)
    assert ("a value differs by 2 of 255" in done.out) is not passes


def test_bytes_that_are_no_picture(camp: Camp, no_gpu: None, picture_copy: Path) -> None:
    with_golden(picture_copy, picture=np.frombuffer(b"no picture", np.uint8))
    done = camp("doctor", picture_copy)
    assert done.code == 1
    assert "golden picture: the picture of golden.npz cannot be read as a picture" in done.out
