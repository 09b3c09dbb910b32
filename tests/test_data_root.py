"""The root that a dataset.json declares, which pictures a line may name below it, and what other metadata is read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camp_sdk import BundleError, load_split
from camp_sdk.datasets.root import root_text
from camp_sdk.export.training.resume import digest_of

ROW = {"file_name": "sub/a.png", "captions": ["a red circle"]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set whose one picture is ../pictures/sub/a.png."""
    (tmp_path / "pictures/sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures/sub/a.png")
    folder = tmp_path / "data"
    (folder / "train").mkdir(parents=True)
    declare(folder, {"version": 1, "root": "../pictures"})
    describe(folder, ROW)
    return folder


def declare(data: Path, content: Any) -> None:
    (data / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))


def describe(data: Path, *rows: dict[str, Any]) -> None:
    (data / "train/metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def images_of(data: Path) -> list[Path]:
    return [Path(str(path)) for path in load_split(data, "train").images]


def test_pictures_are_found_below_the_root(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = (data.parent / "pictures/sub/a.png").resolve()
    assert images_of(data) == [picture]
    declare(data, {"version": 1, "root": str(data.parent / "pictures")})
    assert images_of(data) == [picture]
    monkeypatch.chdir(data)
    assert images_of(Path()) == [picture]


def test_a_data_set_and_its_pictures_move_together(data: Path) -> None:
    there = data.parent / "there"
    there.mkdir()
    for name in ("data", "pictures"):
        shutil.move(data.parent / name, there / name)
    assert images_of(there / "data") == [(there / "pictures/sub/a.png").resolve()]


def test_links_below_a_declared_root_are_followed(data: Path, tmp_path: Path) -> None:
    """A folder, a picture and the root itself may be links to another disk."""
    (tmp_path / "pictures").rename(tmp_path / "disk")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/sub").symlink_to(tmp_path / "disk/sub")
    assert images_of(data) == [(tmp_path / "pictures").resolve() / "sub/a.png"]
    (tmp_path / "pictures/b.png").symlink_to("../disk/sub/a.png")
    describe(data, ROW, {**ROW, "file_name": "b.png"})
    assert [path.name for path in images_of(data)] == ["a.png", "b.png"]
    shutil.rmtree(tmp_path / "pictures")
    (tmp_path / "pictures").symlink_to("disk")
    describe(data, ROW)
    assert images_of(data) == [(tmp_path / "disk").resolve() / "sub/a.png"]


@pytest.mark.parametrize(
    "name", ["../pictures/sub/a.png", "sub/../sub/a.png", "sub/..", "..", "/etc/hostname", "sub/../../data/x.png"]
)
def test_no_name_leads_out_of_a_declared_root(data: Path, name: str) -> None:
    describe(data, ROW, {**ROW, "file_name": name})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2: file_name .* is outside the folder .*/pictures$"):
        load_split(data, "train")


def test_an_absolute_name_below_the_root_is_refused_too(data: Path) -> None:
    describe(data, {**ROW, "file_name": str((data.parent / "pictures/sub/a.png").resolve())})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:1: file_name .* is outside the folder"):
        load_split(data, "train")


@pytest.mark.parametrize("name", ["gone.png", "sub", "", ".", "sub/a.png/b.png", "dangling.png", "circle.png", "pipe"])
@pytest.mark.parametrize("declared", [True, False])
def test_what_is_not_a_picture_file(data: Path, name: str, declared: bool) -> None:
    root = data.parent / "pictures" if declared else data / "train"
    if not declared:
        (data / "dataset.json").unlink()
        shutil.copytree(data.parent / "pictures/sub", root / "sub")
    (root / "dangling.png").symlink_to("nothing")
    (root / "circle.png").symlink_to("circle.png")
    os.mkfifo(root / "pipe")
    describe(data, ROW, {**ROW, "file_name": name})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2: .*(is missing|cannot be a path)"):
        load_split(data, "train")


def test_without_a_root_links_stay_in_the_folder_of_the_split(data: Path) -> None:
    (data / "dataset.json").unlink()
    shutil.copytree(data.parent / "pictures/sub", data / "train/sub")
    (data / "train/inside").symlink_to("sub")
    (data / "train/b.png").symlink_to("inside/a.png")
    describe(data, ROW, {**ROW, "file_name": "inside/a.png"}, {**ROW, "file_name": "b.png"})
    assert len(images_of(data)) == 3
    (data / "train/out").symlink_to(data.parent / "pictures/sub")
    describe(data, ROW, {**ROW, "file_name": "out/a.png"})
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2: file_name 'out/a\.png' is outside the folder .*train"):
        load_split(data, "train")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[" * 60_000, "is not JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "is not JSON"),
        (" " * 70_000, "is not a file of at most 65536 bytes"),
        ([], r"holds \[\]"),
        ({"root": "../pictures"}, r"holds \['root'\]"),
        ({"version": 1, "root": "../pictures", "more": 1}, r"holds \['more', 'root', 'version'\]"),
        ({"version": 2, "root": "../pictures"}, "has version 2: .* a newer one needs a newer camp-sdk"),
        ({"version": True, "root": "../pictures"}, "has version True"),
        ({"version": 1, "root": 5}, "has root 5"),
        ({"version": 1, "root": ""}, "has root ''"),
        ({"version": 1, "root": "../gone"}, r"root '\.\./gone' is not a folder \(it is relative to .*data\)"),
        ({"version": 1, "root": "../pictures/sub/a.png"}, "is not a folder"),
        ({"version": 1, "root": "a\0b"}, "cannot be a path|is not a folder"),
        ({"version": 1, "root": "x" * 5000}, "cannot be a path"),
    ],
    ids=range(15),
)
def test_a_broken_dataset_json(data: Path, content: Any, said: str) -> None:
    declare(data, content)
    with pytest.raises(BundleError, match=rf"dataset\.json.*{said}"):
        load_split(data, "train")


def test_a_dataset_json_that_is_no_file(data: Path) -> None:
    (data / "dataset.json").unlink()
    (data / "dataset.json").mkdir()
    with pytest.raises(BundleError, match=r"dataset\.json is not a file of at most"):
        load_split(data, "train")
    (data / "dataset.json").rmdir()
    (data / "dataset.json").symlink_to("nothing")
    with pytest.raises(BundleError, match=r"dataset\.json is not a file of at most"):
        load_split(data, "train")


def test_roots_are_written_as_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk/pictures").mkdir(parents=True)
    (tmp_path / "link").symlink_to("disk/pictures")
    named = {name: root_text(Path(name), Path("data/coco")) for name in ("disk/pictures", "link", ".", "/a/b")}
    assert named == {"disk/pictures": "../../disk/pictures", "link": "../../link", ".": "../..", "/a/b": "/a/b"}


# Other keys and names of metadata


@pytest.mark.parametrize("row", [{"captions": "one"}, {"captions": ["one"]}, {"text": "one"}, {"text": ["one"]}])
def test_one_caption_and_the_key_of_hugging_face(data: Path, row: dict[str, Any]) -> None:
    describe(data, {"file_name": "sub/a.png", **row})
    assert load_split(data, "train").captions == ["one"]


@pytest.mark.parametrize("there", ["dev", "val", "validation"])
def test_every_name_of_dev(data: Path, there: str) -> None:
    (data / "train").rename(data / there)
    for asked in ("dev", "val", "validation"):
        split = load_split(data, asked)
        assert (split.name, split.captions) == (asked, ["a red circle"])


def test_an_imported_data_set_is_the_same_data_to_training(data: Path, tmp_path: Path) -> None:
    """Its digest, which a resumed run compares, is that of the same pictures in the folder of the split."""
    other = tmp_path / "other/train"
    shutil.copytree(tmp_path / "pictures", other)
    (other / "metadata.jsonl").write_text(json.dumps(ROW))
    one, two = load_split(data, "train"), load_split(tmp_path / "other", "train")
    assert digest_of(one) == digest_of(two)
    np.testing.assert_array_equal(one.image_of_caption, two.image_of_caption)
