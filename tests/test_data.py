"""Splits on disk: folders of pictures and precomputed features, and every way they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import BundleError, load_split
from camp_sdk.data import open_rows

GOOD = json.dumps({"file_name": "a.png", "captions": ["a red circle"]})


def features_of(images: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((images, 3, 4), dtype=np.float32)


def write_features(folder: Path, features: NDArray[np.generic], captions: list[str]) -> Path:
    np.save(folder / "test_ims.npy", features)
    (folder / "test_caps.txt").write_text("".join(f"{caption}\n" for caption in captions), encoding="utf-8")
    return folder


def write_pictures(folder: Path, *lines: str) -> Path:
    (folder / "test").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / "test" / name)
    (folder / "test/metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def words(count: int) -> list[str]:
    return [f"caption {index}" for index in range(count)]


def test_a_folder_of_pictures(scenes: Path) -> None:
    split = load_split(scenes, "test")
    lines = [json.loads(line) for line in (scenes / "test/metadata.jsonl").read_text().splitlines()]
    assert split.has_pictures
    assert list(split.images) == [scenes / "test" / line["file_name"] for line in lines]
    assert split.captions == [caption for line in lines for caption in line["captions"]]
    assert split.image_of_caption.tolist() == [index for index in range(8) for _ in range(5)]


def test_pictures_may_have_different_numbers_of_captions(tmp_path: Path) -> None:
    two = json.dumps({"file_name": "b.png", "captions": ["one", "two"]})
    split = load_split(write_pictures(tmp_path, GOOD, "", two), "test")
    assert split.image_of_caption.tolist() == [0, 1, 1]


def test_a_picture_described_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata\.jsonl:3 describes a\.png, as line 1 does: expected one line"):
        load_split(write_pictures(tmp_path, GOOD, "", GOOD), "test")


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    write_features(tmp_path, features_of(2), ["\ufeffa red circle", "a star"])
    assert load_split(tmp_path, "test").captions == ["a red circle", "a star"]


@pytest.mark.parametrize("each", [1, 5])
def test_one_or_five_captions_a_feature_row(tmp_path: Path, each: int) -> None:
    features = features_of(4)
    split = load_split(write_features(tmp_path, features, words(4 * each)), "test")
    np.testing.assert_array_equal(split.images, features)
    assert split.captions == words(4 * each)
    assert split.image_of_caption.tolist() == [index for index in range(4) for _ in range(each)]


def test_one_feature_row_a_caption_is_one_row_an_image(tmp_path: Path) -> None:
    features = features_of(4)
    split = load_split(write_features(tmp_path, features.repeat(5, axis=0), words(20)), "test")
    np.testing.assert_array_equal(split.images, features)
    assert split.image_of_caption.tolist() == [index for index in range(4) for _ in range(5)]


@pytest.mark.parametrize("rows", [48, 49, 11])
def test_repeated_rows_that_are_not_in_fives_are_refused(tmp_path: Path, rows: int) -> None:
    repeated = features_of(10).repeat(5, axis=0)[:rows]
    with pytest.raises(BundleError, match=f"repeats its rows, .* but its {rows} rows are not groups of 5 equal ones"):
        load_split(write_features(tmp_path, repeated, words(rows)), "test")


@pytest.mark.parametrize("equal", [(0, 1), (0, 1, 2), (3, 4), (0, 5), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("rows", [7, 10])
def test_equal_pictures_may_have_one_caption_each(tmp_path: Path, rows: int, equal: tuple[int, ...]) -> None:
    features = features_of(rows)
    features[list(equal)] = features[equal[0]]
    split = load_split(write_features(tmp_path, features, words(rows)), "test")
    np.testing.assert_array_equal(split.images, features)
    assert split.image_of_caption.tolist() == list(range(rows))
    assert len(open_rows(tmp_path / "test_ims.npy")[0]) == rows


def test_two_equal_pictures_may_have_five_captions_each(tmp_path: Path) -> None:
    features = features_of(7)
    features[1] = features[0]
    split = load_split(write_features(tmp_path, features, words(35)), "test")
    assert split.image_of_caption.tolist() == [index for index in range(7) for _ in range(5)]


def test_open_rows_names_each_image_by_its_row(tmp_path: Path) -> None:
    features = features_of(3)
    np.save(tmp_path / "once.npy", features)
    np.save(tmp_path / "five.npy", features.repeat(5, axis=0))
    for name, rows in (("once", [0, 1, 2]), ("five", [0, 5, 10])):
        found, names = open_rows(tmp_path / f"{name}.npy")
        np.testing.assert_array_equal(found, features)
        assert names == [f"row {row}" for row in rows]


def test_as_many_different_rows_as_captions_stay_apart(tmp_path: Path) -> None:
    split = load_split(write_features(tmp_path, features_of(10), words(10)), "test")
    assert split.image_of_caption.tolist() == list(range(10))


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", ">f4", "<f8", ">f8"])
def test_features_of_every_float_type_are_mapped(tmp_path: Path, dtype: str, order: str, repeats: int) -> None:
    features = features_of(4).astype(dtype)
    stored = np.asarray(features.repeat(repeats, axis=0), order=order)  # type: ignore[call-overload]  # "C" or "F"
    split = load_split(write_features(tmp_path, stored, words(20)), "test")
    rows, _ = open_rows(tmp_path / "test_ims.npy")
    for found in (split.images, rows):
        assert isinstance(found, np.memmap)
        assert found.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(found, features)


@pytest.mark.parametrize(("there", "asked"), [("val", "dev"), ("dev", "val")])
@pytest.mark.parametrize("pictures", [False, True])
def test_dev_and_val_stand_for_each_other(tmp_path: Path, there: str, asked: str, pictures: bool) -> None:
    if pictures:
        (write_pictures(tmp_path, GOOD) / "test").rename(tmp_path / there)
    else:
        write_features(tmp_path, features_of(2), words(2))
        for name in ("ims.npy", "caps.txt"):
            (tmp_path / f"test_{name}").rename(tmp_path / f"{there}_{name}")
    split = load_split(tmp_path, asked)
    assert (split.name, split.has_pictures, len(split.captions)) == (asked, pictures, 1 if pictures else 2)


def test_a_split_of_its_own_name_comes_first(tmp_path: Path) -> None:
    for name, count in (("dev", 2), ("val", 3)):
        np.save(tmp_path / f"{name}_ims.npy", features_of(count))
        (tmp_path / f"{name}_caps.txt").write_text("a star\n" * count)
    assert [len(load_split(tmp_path, name).images) for name in ("dev", "val")] == [2, 3]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ("dev", "'dev' or 'val' or 'validation'"),
        ("val", "'val' or 'dev' or 'validation'"),
        ("validation", "'validation' or 'dev' or 'val'"),
    ],
)
def test_where_none_is_there_all_are_named(tmp_path: Path, asked: str, named: str) -> None:
    with pytest.raises(BundleError, match=f"has no split {named}: expected"):
        load_split(tmp_path, asked)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_cannot_be_a_path_is_refused(tmp_path: Path, name: str) -> None:
    for data, split in ((tmp_path, name), (tmp_path / name, "test")):
        with pytest.raises(BundleError, match=r"cannot be a path|has no split"):
            load_split(data, split)


@pytest.mark.parametrize("repeats", [1, 5])
def test_features_stay_memory_mapped(tmp_path: Path, repeats: int) -> None:
    split = load_split(write_features(tmp_path, features_of(4).repeat(repeats, axis=0), words(20)), "test")
    assert isinstance(split.images, np.memmap)
    assert not split.has_pictures


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_caption(tmp_path: Path, odd: str) -> None:
    split = load_split(write_features(tmp_path, features_of(2), [f"a red{odd}circle", "a star"]), "test")
    assert len(split.captions) == 2


def test_a_missing_split_names_both_formats(scenes: Path) -> None:
    with pytest.raises(BundleError, match=r"no split 'extra'.*metadata\.jsonl.*extra_ims\.npy"):
        load_split(scenes, "extra")


def test_a_line_that_is_not_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2 is not JSON"):
        load_split(write_pictures(tmp_path, GOOD, "{file_name: a.png}"), "test")


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("5", id="no object"),
        pytest.param({"name": "a.png", "captions": ["x"]}, id="no file_name"),
        pytest.param({"file_name": "a.png", "caption": ["x"]}, id="no captions"),
        pytest.param({"file_name": 5, "captions": ["x"]}, id="file_name is a number"),
        pytest.param({"file_name": "a.png", "captions": ""}, id="the one caption is empty"),
        pytest.param({"file_name": "a.png", "captions": {"x": "y"}}, id="captions is an object"),
        pytest.param({"file_name": "a.png", "text": 5}, id="text is a number"),
        pytest.param({"file_name": "a.png", "captions": []}, id="no caption"),
        pytest.param({"file_name": "a.png", "captions": ["x", ""]}, id="an empty caption"),
        pytest.param({"file_name": "a.png", "captions": ["x", " \t"]}, id="a blank caption"),
        pytest.param({"file_name": "a.png", "captions": ["x", 5]}, id="a caption is a number"),
        pytest.param({"file_name": "a.png", "captions": ["x\ud800"]}, id="half a character"),
    ],
)
def test_a_line_with_wrong_keys_is_named(tmp_path: Path, line: object) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    with pytest.raises(BundleError, match=r'metadata\.jsonl:2: expected \{"file_name"'):
        load_split(write_pictures(tmp_path, GOOD, text), "test")


@pytest.mark.parametrize("name", ["../a.png", "../../a.png", "/etc/passwd", "sub/../../a.png"])
def test_a_file_name_that_leaves_the_folder(tmp_path: Path, name: str) -> None:
    line = json.dumps({"file_name": name, "captions": ["x"]})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2.*is outside the folder"):
        load_split(write_pictures(tmp_path, GOOD, line), "test")


def test_a_link_that_leaves_the_folder(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, json.dumps({"file_name": "link.png", "captions": ["x"]}))
    (folder / "outside.png").write_bytes(b"")
    (folder / "test/link.png").symlink_to(folder / "outside.png")
    with pytest.raises(BundleError, match=r"metadata\.jsonl:1.*is outside the folder"):
        load_split(folder, "test")


@pytest.mark.parametrize("name", ["gone.png", "", "a.png\0", "\ud800.png", "x" * 5000])
def test_a_missing_picture_is_named(tmp_path: Path, name: str) -> None:
    line = json.dumps({"file_name": name, "captions": ["x"]})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2"):
        load_split(write_pictures(tmp_path, GOOD, line), "test")


def test_metadata_without_a_line(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"metadata\.jsonl describes no picture"):
        load_split(write_pictures(tmp_path, ""), "test")


def test_metadata_that_is_not_utf8(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path, GOOD)
    (folder / "test/metadata.jsonl").write_bytes(GOOD.encode() + b"\n\xff\xfe\n")
    with pytest.raises(BundleError, match=r"metadata\.jsonl"):
        load_split(folder, "test")


def test_a_truncated_feature_file(tmp_path: Path) -> None:
    file = write_features(tmp_path, features_of(4), words(4)) / "test_ims.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(BundleError, match=r"test_ims\.npy cannot be opened.*copy it again"):
        load_split(tmp_path, "test")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not numpy at all"])
def test_a_file_that_is_not_numpy(tmp_path: Path, content: bytes) -> None:
    (write_features(tmp_path, features_of(4), words(4)) / "test_ims.npy").write_bytes(content)
    with pytest.raises(BundleError, match=r"test_ims\.npy cannot be opened"):
        load_split(tmp_path, "test")


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    write_features(tmp_path, np.array([{"an": "object"}], object), words(1))
    with pytest.raises(BundleError, match=r"test_ims\.npy cannot be opened"):
        load_split(tmp_path, "test")


@pytest.mark.parametrize(
    "features",
    [
        pytest.param(np.zeros((4, 3, 4), np.int32), id="int32"),
        pytest.param(np.zeros((4, 3, 4), np.bool_), id="bool"),
        pytest.param(np.zeros((4, 4), np.float32), id="two axes"),
        pytest.param(np.zeros((4, 3, 4, 1), np.float32), id="four axes"),
        pytest.param(np.zeros((0, 3, 4), np.float32), id="no image"),
    ],
)
def test_features_of_another_type_or_shape(tmp_path: Path, features: NDArray[np.generic]) -> None:
    with pytest.raises(BundleError, match=r"test_ims\.npy is .*expected floats \[images, regions, width\]"):
        load_split(write_features(tmp_path, features, words(4)), "test")


@pytest.mark.parametrize("count", [0, 3, 5, 8, 19, 21, 40])
def test_a_number_of_captions_that_fits_nothing(tmp_path: Path, count: int) -> None:
    with pytest.raises(BundleError, match=rf"test_caps\.txt has {count} captions for the 4 rows"):
        load_split(write_features(tmp_path, features_of(4), words(count)), "test")


@pytest.mark.parametrize("blank", ["", "   "])
def test_an_empty_caption_line_is_named(tmp_path: Path, blank: str) -> None:
    with pytest.raises(BundleError, match=r"test_caps\.txt:2 is empty"):
        load_split(write_features(tmp_path, features_of(3), ["one", blank, "three"]), "test")


def test_missing_captions(tmp_path: Path) -> None:
    (write_features(tmp_path, features_of(4), words(4)) / "test_caps.txt").unlink()
    with pytest.raises(BundleError, match=r"test_caps\.txt is missing"):
        load_split(tmp_path, "test")


def test_captions_that_are_not_utf8(tmp_path: Path) -> None:
    (write_features(tmp_path, features_of(1), words(1)) / "test_caps.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(BundleError, match=r"test_caps\.txt"):
        load_split(tmp_path, "test")
