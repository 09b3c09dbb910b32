"""`camp data flickr30k`, `csv` and `butd`: data sets that `load_split` reads; after an error, nothing is written."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import load_split
from camp_sdk.data import open_rows
from camp_sdk.datasets.records import Reading
from tests.helpers.command import Camp
from tests.helpers.datasets import CAPTIONS, SPLITS, karpathy, pairs_of, refused, write, write_pictures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures in pictures/, which commands run in."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    return tmp_path


# Flickr30K


TOKEN = "".join(f"{name}#{k}\t{text}\n" for name, texts in CAPTIONS.items() for k, text in enumerate(texts))


def test_flickr30k(camp: Camp, here: Path) -> None:
    write(here / "results_20130124.token", TOKEN)
    (here / "pictures").rename(here / "flickr30k-images")
    (here / "pictures").symlink_to("flickr30k-images")  # for `pairs_of`
    result = camp("data", "flickr30k", "results_20130124.token")
    assert result.out == "data/flickr30k: train: 3 images, 15 captions\n"
    loaded = load_split(here / "data/flickr30k", "train")
    assert [path.name for path in loaded.images if isinstance(path, Path)] == list(CAPTIONS)
    assert loaded.captions == [text for texts in CAPTIONS.values() for text in texts]


def test_flickr30k_with_lists_of_splits(camp: Camp, here: Path) -> None:
    write(here / "results.token", TOKEN)
    (here / "lists").mkdir()
    write(here / "lists/train.txt", "1\n")
    write(here / "lists/val.txt", "\n2.jpg\n")
    options = ("results.token", "--images", "pictures", "--splits", "lists")
    result = camp("data", "flickr30k", *options, "--output", "out")
    assert "pictures of no split, left out: 1" in result.out
    assert [list(pairs_of(here / "out", split)) for split in ("train", "dev")] == [["1.jpg"], ["2.jpg"]]
    write(here / "lists/test.txt", "3\n1\n")
    assert "train.txt:1: '1' is also in the list of test" in refused(camp, here, "flickr30k", *options)
    assert "--splits pictures holds no lists" in refused(camp, here, "flickr30k", *options[:-1], "pictures")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"1.jpg#0 a caption", "expected 1000092795.jpg#0, a tab"),
        (b"1.jpg\ta caption", "expected 1000092795.jpg#0, a tab"),
        (b"1.jpg#0\t  ", "the caption is empty"),
        (b"1.jpg#0\tcaf\xe9", "is not UTF-8 text"),
        (b"4.jpg#0\ta", "4.jpg is missing"),
        (b"../pictures/1.jpg#0\ta", "is outside the folder"),
        (b"x\0y#0\ta", "cannot be a path"),
        (b"1.jpg#0\t" + b"a" * (1 << 20), "has more than 1048576 characters"),
    ],
    ids=range(8),
)
def test_broken_flickr30k(camp: Camp, here: Path, line: bytes, said: str) -> None:
    (here / "r.token").write_bytes(b"1.jpg#0\ta\n\n" + line + b"\n")
    shown = refused(camp, here, "flickr30k", "r.token", "--images", "pictures")
    assert shown.startswith("error: r.token:3")
    assert said in shown


# Tables


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_a_table(camp: Camp, here: Path, delimiter: str) -> None:
    rows = [
        ("no", "image", " caption", "part"),
        *((k, n, f'"{t[0]}, ""so"""', "valid") for k, (n, t) in enumerate(CAPTIONS.items())),
    ]
    write(here / "t.csv", "\ufeff" + "".join(delimiter.join(map(str, row)) + "\r\n" for row in rows))
    options = ["--images", "pictures", "--file-column", "image", "--caption-column", "caption", "--output", "out"]
    result = camp("data", "csv", "t.csv", *options, "--split-column", "part")
    assert result.code == 0, result.err
    assert pairs_of(here / "out", "dev") == {name: [f'{texts[0]}, "so"'] for name, texts in CAPTIONS.items()}


def test_a_table_with_several_captions_in_a_row_or_several_rows(camp: Camp, here: Path) -> None:
    write(here / "t.csv", "image:a:b\n1.jpg:one:two\n2.jpg:three:four\n1.jpg:five:six\n")
    options = ["--images", "pictures", "--file-column", "image", "--caption-column", "a", "--caption-column", "b"]
    camp("data", "csv", "t.csv", *options, "--delimiter", ":", "--output", "out")
    assert pairs_of(here / "out", "train") == {"1.jpg": ["one", "two", "five", "six"], "2.jpg": ["three", "four"]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "t.csv:1 is '': expected columns named 'image', 'caption'"),
        ("file,caption\n", "t.csv:1 is 'file,caption\\\\n': expected columns named 'image', 'caption'"),
        ("image,caption\n1.jpg,a\n1.jpg\n", "t.csv:3: the caption is empty; --skip-missing"),
        ("image,caption\n,a\n", "t.csv:2 names no picture in column 'image'"),
        ('image,caption\n1.jpg,a\n1.jpg,"b"c\n', "t.csv:3 is not a row of a table"),
        ('image,caption\n1.jpg,"b\nc\n', "t.csv:2 is not a row of a table"),
        ('image,caption\n1.jpg,"b\nc"\n4.jpg,"d\ne\nf"\n', "t.csv:4: .*4.jpg is missing"),
        ("image,caption,caption\n1.jpg,a,b\n", "t.csv:1 has several columns named 'caption': expected one"),
        ("image,caption\n1.jpg," + "a" * 200_000, "t.csv:2 is not a row of a table"),
        ("image,caption," + "a" * 200_000, "t.csv:1 is not the header of a table"),
        ("image,caption\n4.jpg,a\n", "t.csv:2: .*4.jpg is missing"),
    ],
    ids=range(11),
)
def test_a_broken_table(camp: Camp, here: Path, table: str, said: str) -> None:
    write(here / "t.csv", table)
    options = ("t.csv", "--images", "pictures", "--file-column", "image", "--caption-column", "caption")
    assert re.search(f"^error: {said}", refused(camp, here, "csv", *options))


def test_a_delimiter_is_one_character(camp: Camp, here: Path) -> None:
    write(here / "t.csv", "image,caption\n")
    options = ("t.csv", "--images", "pictures", "--file-column", "image", "--caption-column", "caption")
    assert "--delimiter is ',,': expected one character" in refused(camp, here, "csv", *options, "--delimiter", ",,")
    assert "expected columns named" in refused(camp, here, "csv", *options, "--delimiter", r"\t")


@pytest.mark.parametrize("command", ["karpathy", "flickr30k", "csv", "butd"])
def test_a_file_that_is_not_there(camp: Camp, here: Path, command: str) -> None:
    options = ["--images", "pictures"] if command != "butd" else []
    options += ["--file-column", "a", "--caption-column", "b"] if command == "csv" else []
    assert refused(camp, here, command, "gone", *options) == "error: gone cannot be opened: No such file or directory"
    assert refused(camp, here, command, "pictures", *options) == "error: pictures is not a file"


def test_a_caption_is_one_line() -> None:
    assert Reading().captions([" a\n red  circle\u2028here "], "here") == ["a red circle here"]


# Bottom-up attention


def test_line_ends_of_any_system(camp: Camp, here: Path) -> None:
    options = ("--images", "pictures", "--file-column", "image", "--caption-column", "caption")
    for number, end in enumerate(("\n", "\r\n", "\r")):
        (here / "t.csv").write_bytes(b"\xef\xbb\xbf" + f"image,caption{end}1.jpg,a b{end}2.jpg,c{end}".encode())
        camp("data", "csv", "t.csv", *options, "--output", f"out{number}")
        assert pairs_of(here / f"out{number}", "train") == {"1.jpg": ["a b"], "2.jpg": ["c"]}


REGIONS = {name: np.random.default_rng(k).standard_normal((4, 6), np.float32) for k, name in enumerate("123")}
BOXES = np.array([[0, 0, 100, 50], [10, 5, 20, 10], [50, 25, 100, 50], [0, 0, 1, 1]], np.float32)


def base64_of(numbers: Any) -> str:
    return base64.b64encode(np.asarray(numbers, np.float32).tobytes()).decode()


def tsv(**changes: Any) -> str:
    """Three lines, of which the second has the changes."""
    lines = []
    for name, features in REGIONS.items():
        row = {"id": name, "w": 100, "h": 50, "count": 4, "boxes": base64_of(BOXES), "features": base64_of(features)}
        row |= changes if name == "2" else {}
        lines.append("\t".join(map(str, row.values())) + "\n")
    return "".join(lines)


def test_features_without_captions(camp: Camp, here: Path) -> None:
    write(here / "trainval_36.tsv", tsv())
    result = camp("data", "butd", "trainval_36.tsv")
    assert result.out == "data/butd: all: 3 images\n"
    features, _ = open_rows(here / "data/butd/features.npy")
    np.testing.assert_array_equal(features, np.stack(list(REGIONS.values())))
    boxes = np.load(here / "data/butd/boxes.npy")
    np.testing.assert_array_equal(boxes, np.stack([BOXES / np.float32([100, 50, 100, 50])] * 3))
    assert (here / "data/butd/ids.txt").read_text() == "1\n2\n3\n"


@pytest.mark.parametrize("by", ["cocoid", "name"])
def test_features_with_captions(camp: Camp, here: Path, by: str) -> None:
    whole = karpathy(SPLITS)
    for image in whole["images"] if by == "cocoid" else ():
        image.update(cocoid=int(image["filename"][0]), filename=f"COCO_{image['filename']}")
    whole["images"][0]["sentences"].append({"raw": "a sixth caption"})
    write(here / "k.json", whole)
    write(here / "a.tsv", tsv())
    result = camp("data", "butd", "a.tsv", "--captions", "k.json", "--output", "out")
    assert result.out.splitlines() == [
        "out: train: 1 images, 5 captions",
        "out: dev: 1 images, 5 captions",
        "pictures of restval, left out: 1",
        "pictures of no split, left out: 1",
    ]
    for split, name in (("train", "1"), ("dev", "2")):
        loaded = load_split(here / "out", split)
        np.testing.assert_array_equal(loaded.images, REGIONS[name][np.newaxis])
        assert loaded.captions == CAPTIONS[f"{name}.jpg"]
        assert (here / f"out/{split}_ids.txt").read_text() == f"{name}\n"
        assert np.load(here / f"out/{split}_boxes.npy").shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": ""}, "has image_id '', expected a short name"),
        ({"id": "1"}, "has image_id '1', as a.tsv:1 has"),
        ({"w": "0"}, "has image_w '0', expected a whole number above 0"),
        ({"h": "-5"}, "has image_h '-5', expected a whole number above 0"),
        ({"count": "9" * 5000}, "has num_boxes '999.*'..., expected a whole number"),
        ({"count": 5}, "has 64 bytes of boxes, expected float32 of num_boxes 5"),
        ({"count": 2}, "has boxes of 8 numbers, expected 4"),
        (
            {"count": 3, "boxes": base64_of(BOXES[:3]), "features": base64_of(np.zeros((3, 6)))},
            "has 3 regions of width 6",
        ),
        ({"features": base64_of(np.zeros((4, 5)))}, "has 4 regions of width 5, and a.tsv:1 has 4 regions of width 6"),
        ({"features": base64_of(np.zeros(23))}, "has 92 bytes of features, expected float32 of num_boxes 4"),
        ({"features": base64_of(np.full((4, 6), np.nan))}, "has features that are not finite"),
        ({"features": "!!!!"}, "has features that are not base64"),
        ({"features": ""}, "has 0 bytes of features"),
        ({"more": "x"}, "has 7 columns, expected 6: image_id, image_w"),
    ],
)
def test_broken_features(camp: Camp, here: Path, changes: dict[str, Any], said: str) -> None:
    write(here / "a.tsv", tsv(**changes))
    assert re.search(rf"^error: a.tsv:2 {said}", refused(camp, here, "butd", "a.tsv"))


def test_features_and_captions_must_match(camp: Camp, here: Path) -> None:
    write(here / "a.tsv", tsv())
    few = karpathy({"1.jpg": "train", "2.jpg": "train"})
    few["images"][1]["sentences"].pop()
    write(here / "few.json", few)
    line = refused(camp, here, "butd", "a.tsv", "--captions", "few.json")
    assert line.startswith("error: few.json:1, images[1] has 4 captions, expected at least 5; --skip-missing leaves")
    more = karpathy({"1.jpg": "train"})
    more["images"] += [{**more["images"][0], "filename": f"{k}.jpg"} for k in (8, 9)]
    write(here / "more.json", more)
    line = refused(camp, here, "butd", "a.tsv", "--captions", "more.json")
    assert line.startswith("error: more.json:1, images[1] and 1 more have no features in a.tsv; --skip-missing leaves")
    result = camp("data", "butd", "a.tsv", "--captions", "more.json", "--output", "two", "--skip-missing")
    assert "images without features, left out: 2" in result.out
    write(here / "none.json", {"images": []})
    line = refused(camp, here, "butd", "a.tsv", "--captions", "none.json", "--skip-missing")
    assert line == "error: a.tsv: none.json has captions of none of the images"
    write(here / "a.tsv", "")
    assert refused(camp, here, "butd", "a.tsv") == "error: a.tsv: expected a line for each image"
