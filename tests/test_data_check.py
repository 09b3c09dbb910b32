"""`camp data check`: what it counts, every kind of finding, and the page."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import BundleError
from camp_sdk.datasets.check import check_data
from camp_sdk.datasets.report import BROKEN, NOTES, DataReport, Size, SplitReport, median
from tests.helpers.command import Camp


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two splits with two different pictures each, nothing of which is broken."""
    for split in ("train", "test"):
        for name in ("a.png", "b.png"):
            add(tmp_path / "data", split, name, [f"a caption of {split}/{name}", f"another of {split}/{name}, longer"])
    return tmp_path / "data"


def add(data: Path, split: str, name: str, captions: Any, picture: bytes | None = None) -> None:
    """Add a line and its picture: a new one, or these bytes."""
    (data / split).mkdir(parents=True, exist_ok=True)
    if picture is None:
        grey = sum((data / split / name).as_posix().encode()) % 251
        Image.new("RGB", (8 if name == "a.png" else 16, 8), (grey, grey, len(split))).save(data / split / name)
    else:
        (data / split / name).write_bytes(picture)
    with (data / split / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": name, "captions": captions}) + "\n")


def found(report: DataReport) -> dict[str, list[str]]:
    """The kinds of findings that there are."""
    return {kind: lines for kind, lines in report.findings.items() if lines}


def test_a_whole_data_set(data: Path) -> None:
    report = check_data(data)
    assert (report.is_whole, found(report), report.root) == (True, {}, None)
    assert [split.name for split in report.splits] == ["train", "test"]
    train = report.splits[0]
    assert (train.images, train.captions) == (2, 4)
    assert train.nbytes == sum(path.stat().st_size for path in (data / "train").glob("*.png"))
    assert train.sizes == {Size(8, 8): 1, Size(16, 8): 1}
    assert (train.captions_each, train.words) == ({2: 2}, {4: 4})
    assert train.histogram == [("1-5", 4)]
    assert [sample.name for sample in report.samples] == ["a.png", "b.png"] * 2


def test_the_histogram_counts_every_caption_once() -> None:
    words = Counter({1: 2, 5: 1, 6: 4, 40: 1, 41: 1, 47: 1, 48: 3, 900: 1})
    empty = [(f"{low}-{low + 4}", 0) for low in (11, 16, 21, 26, 31)]
    few, many = [("1-5", 3), ("6-10", 4)], [("36-40", 1), ("41-47", 2), ("48 or more", 4)]
    assert SplitReport("train", words=words).histogram == [*few, *empty, *many]
    assert SplitReport("train").histogram == []


def test_the_median_is_the_lower_of_two() -> None:
    for numbers in ([3], [1, 2], [1, 2, 2, 9], [5, 5, 5, 6, 7]):
        assert median(Counter(numbers)) == sorted(numbers)[(len(numbers) - 1) // 2]


def test_sizes_are_ordered_by_area(data: Path) -> None:
    add(data, "train", "a.jpg", ["wide"], png((40, 2)))
    assert check_data(data).splits[0].size_range == (Size(8, 8), Size(40, 2), Size(16, 8))


def png(size: tuple[int, int]) -> bytes:
    buffer = BytesIO()
    Image.effect_noise(size, 50).save(buffer, "PNG")
    return buffer.getvalue()


def test_every_kind_of_finding(data: Path) -> None:
    metadata = data / "test/metadata.jsonl"
    add(data, "test", "copy.png", ["own", "own", "own"], (data / "train/a.png").read_bytes())
    add(data, "test", "again.png", ["own"], (data / "test/a.png").read_bytes())
    add(data, "test", "cut.png", ["cut"], png((16, 16))[:60])
    add(data, "test", "blank.png", ["whole", " ", ""], png((4, 5)))
    add(data, "test", "none.png", [], png((5, 5)))
    (data / "test/extra.jpg").touch()
    (data / "test/.hidden.jpg").touch()
    with metadata.open("a") as file:
        file.write('{"file_name": "gone.png", "text": "gone"}\n{"file_name": "../x.png", "text": "x"}\n')
        file.write('\n{"file_name": "a.png", "text": "twice"}\nnonsense\n')
    report = check_data(data)
    assert not report.is_whole
    assert {kind: len(lines) for kind, lines in found(report).items()} == {
        "broken lines": 3,
        "missing pictures": 1,
        "broken pictures": 1,
        "pictures without captions": 1,
        "empty captions": 2,
        "images in two splits": 1,
        "pictures that no line describes": 1,
        "images twice in a split": 1,
        "captions twice at an image": 1,
        "captions of several images": 1,
    }
    first = {kind: lines[0] for kind, lines in found(report).items()}
    assert first["broken lines"].startswith(f"{metadata}:9: file_name '../x.png' is outside the folder")
    assert first["missing pictures"] == f"{metadata}:8: {data}/test/gone.png is missing"
    assert first["broken pictures"].startswith(f"{data}/test/cut.png cannot be read as a picture: ")
    assert first["pictures without captions"] == f"{metadata}:7: none.png"
    assert first["empty captions"] == f"{metadata}:6: blank.png"
    assert first["images in two splits"] == "test/copy.png is train/a.png"
    assert first["pictures that no line describes"] == f"{data}/test/extra.jpg"
    assert first["images twice in a split"] == "test/again.png is test/a.png"
    assert first["captions twice at an image"] == "test/copy.png repeats 2 of its captions"
    assert first["captions of several images"] == "'own' is of 2 images of test"
    assert report.findings["broken lines"][1].endswith(":11 describes a.png, as line 1 does")
    shown = [sample.name for sample in report.samples if sample.split == "test"]
    assert shown == ["a.png", "b.png", "copy.png", "again.png"]  # those with nothing wrong


@pytest.mark.parametrize(("kind", "whole"), [*((kind, False) for kind in BROKEN), *((kind, True) for kind in NOTES)])
def test_what_makes_a_data_set_broken(kind: str, whole: bool) -> None:
    report = DataReport(Path())
    report.findings[kind].append("one")
    assert report.is_whole == whole


def test_a_picture_of_a_declared_root_may_be_in_two_splits(data: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (data / "train/a.png").rename(tmp_path / "pictures/a.png")
    (tmp_path / "pictures/z.png").touch()
    for split in ("train", "test"):
        (data / split / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
    (data / "dataset.json").write_text('{"version": 1, "root": "../pictures"}')
    report = check_data(data)
    assert report.root == (tmp_path / "pictures").resolve()
    assert found(report) == {
        "images in two splits": ["test/a.png is train/a.png"],
        "pictures that no line describes": [str(report.root / "z.png")],
    }


def test_metadata_that_cannot_be_read(data: Path) -> None:
    (data / "train/metadata.jsonl").write_bytes(b'{"file_name": "a.png", "text": "caf\xe9"}\n')
    (data / "test/metadata.jsonl").write_text("")
    one, two, three = check_data(data).findings["broken files"]
    assert "train/metadata.jsonl:1 is not UTF-8 text (byte 0xe9 after 35 characters)" in one
    assert "train/metadata.jsonl describes no picture" in two
    assert "test/metadata.jsonl describes no picture" in three


def test_nothing_to_check(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no split: expected \{split\}/metadata\.jsonl or \{split\}_ims\.npy"):
        check_data(tmp_path)
    with pytest.raises(BundleError, match="cannot be read: No such file or directory"):
        check_data(tmp_path / "gone")


# Features


def test_features(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((150, 3, 4), np.float32)
    features[7, 1, 2] = np.nan
    np.save(tmp_path / "train_ims.npy", features)
    (tmp_path / "train_caps.txt").write_text("".join(f"caption {k} of it\n" for k in range(750)))
    np.save(tmp_path / "dev_ims.npy", features[[3, 140, 3]].astype(np.float32))
    (tmp_path / "dev_caps.txt").write_text("one\ntwo\ntwo\n")
    np.save(tmp_path / "test_ims.npy", features)
    report = check_data(tmp_path)
    assert [(split.name, split.images, split.captions, split.shape) for split in report.splits] == [
        ("train", 150, 750, (3, 4)),
        ("dev", 3, 3, (3, 4)),
        ("test", 0, 0, None),
    ]
    assert report.splits[0].nbytes == features.nbytes
    assert found(report) == {
        "broken files": [f"{tmp_path}/test_caps.txt is missing: expected one caption per line"],
        "broken pictures": ["image 7 of train has features that are not finite numbers"],
        "images in two splits": [f"image {k} of dev is image {j} of train" for k, j in ((0, 3), (1, 140), (2, 3))],
        "images twice in a split": ["image 2 of dev is image 0 of dev"],
        "captions of several images": ["'two' is of 2 images of dev"],
    }


# The command


def test_the_command(camp: Camp, data: Path, tmp_path: Path) -> None:
    result = camp("data", "check", data)
    assert result.code == 0
    for shown in ("train", "test", "8 x 8 to 16 x 8 (median 8 x 8)", "words in captions of test:", "nothing is broken"):
        assert shown in result.out
    for number in range(8):
        add(data, "test", f"cut{number}.png", ["\x1b[31mred"], png((16, 16))[: 60 + number])
    result = camp("data", "check", data, "--html", tmp_path / "page.html", columns=80)
    assert result.code == 1
    assert "broken pictures: 8\n" in result.out
    assert "and 3 more: --json lists all" in result.out
    assert r"'\x1b[31mred' is of 8 images" in result.out
    assert "\x1b" not in result.out
    assert result.out.endswith("something is broken\n")


def test_the_command_as_json(camp: Camp, data: Path) -> None:
    shutil.copy(data / "train/a.png", data / "test/a.png")
    result = camp("data", "check", data, "--json")
    answer = json.loads(result.out)
    assert (result.code, answer["whole"], answer["root"], answer["data"]) == (1, False, None, str(data))
    assert answer["findings"]["images in two splits"] == ["test/a.png is train/a.png"]
    assert answer["splits"][0] == {
        "name": "train",
        "images": 2,
        "captions": 4,
        "bytes": check_data(data).splits[0].nbytes,
        "shape": None,
        "sizes": [[8, 8, 1], [16, 8, 1]],
        "captions_each": {"2": 2},
        "words": {"4": 4},
    }


class Page(HTMLParser):
    """The tags and the text of a page, and every value that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_holds_everything_and_escapes_it(camp: Camp, data: Path, tmp_path: Path) -> None:
    add(data, "train", "a<b>.png", ["<script>alert(1)</script> & $data", "right \u202e to left"])
    camp("data", "check", data, "--html", tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    page = Page()
    page.feed(text)
    assert page.tags["img"] == 5
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == 5
    assert not re.search(r"https?:|@import|url\(", text)
    for shown in ("<script>alert(1)</script> & $data", r"right \u202e to left", "a<b>.png", "a caption of test/b.png"):
        assert shown in page.texts


def test_the_page_is_noticed_before_the_check_if_it_cannot_be_written(camp: Camp, data: Path) -> None:
    result = camp("data", "check", data, "--html", data / "train/a.png/page.html")
    assert (result.code, result.err.count("\n")) == (1, 1)  # and no progress
    assert "Not a directory" in result.err
