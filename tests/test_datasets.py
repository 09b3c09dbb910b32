"""`camp data coco` and `karpathy`: data sets that `load_split` reads; after an error, nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from camp_sdk import BundleError
from camp_sdk.datasets import text_files
from camp_sdk.datasets.text_files import read_items
from tests.helpers.command import Camp
from tests.helpers.datasets import CAPTIONS, SPLITS, karpathy, pairs_of, refused, write, write_pictures
from tests.helpers.tiny import files_of


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures in pictures/, which commands run in."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    return tmp_path


# COCO


def coco(captions: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    images = [{"id": k, "file_name": name, "height": 4} for k, name in enumerate(captions, start=7)]
    annotations = [
        {"id": 10 * k + j, "image_id": k, "caption": text}
        for j in range(5)  # not picture by picture, as in COCO's own files
        for k, texts in reversed(list(enumerate(captions.values(), start=7)))
        for text in texts[j : j + 1]
    ]
    return {"info": [{"year": 2017}, 1.5e3], "images": images, "annotations": annotations}


def test_coco(camp: Camp, here: Path) -> None:
    write(here / "captions_train2017.json", coco(CAPTIONS))
    result = camp("data", "coco", "--annotations", "captions_train2017.json", "--images", "pictures/")
    assert (result.code, result.out) == (0, "data/coco: train: 3 images, 15 captions\n")
    assert [path.name for path in files_of(here / "data")] == ["dataset.json", "metadata.jsonl"]  # no picture
    (here / "data/coco").rename(here / "moved")
    assert json.loads((here / "moved/dataset.json").read_text()) == {"version": 1, "root": "../../pictures"}
    (here / "moved/dataset.json").write_text('{"version": 1, "root": "../pictures"}')
    assert pairs_of(here / "moved", "train") == CAPTIONS


def test_two_files_of_coco_become_one_data_set(camp: Camp, here: Path) -> None:
    for part, name in (("train2017", "1.jpg"), ("val2017", "2.jpg")):
        (here / "pictures" / part).mkdir()
        (here / "pictures" / name).rename(here / "pictures" / part / name)
        write(here / f"captions_{part}.json", coco({name: CAPTIONS[name]}))
    files = [("--annotations", f"captions_{p}.json", "--images", f"pictures/{p}") for p in ("train2017", "val2017")]
    result = camp("data", "coco", *files[0], *files[1], "--output", "out", "--json")
    sizes = {"images": 1, "captions": 5}
    assert json.loads(result.out) == {"output": "out", "splits": {"train": sizes, "dev": sizes}, "left_out": {}}
    assert pairs_of(here / "out", "train") == {"train2017/1.jpg": CAPTIONS["1.jpg"]}
    assert pairs_of(here / "out", "val") == {"val2017/2.jpg": CAPTIONS["2.jpg"]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["annotations"][1].pop("image_id"), r":1, annotations\[1\] has image_id None and caption '2.jpg a"),
        (lambda c: c["annotations"][1].update(caption=5), r"annotations\[1\] has image_id 8 and caption 5: expected"),
        (lambda c: c["annotations"][1].update(caption=" \n"), r"\[1\]: the caption is empty; --skip-missing leaves"),
        (lambda c: c["annotations"][1].update(caption="x\ud800"), r"\[1\]: the caption is 'x\\ud800', expected text"),
        (lambda c: c["annotations"][1].update(image_id=99), r"annotations\[1\]: image_id 99 is the id of none"),
        (lambda c: c["annotations"].append(3), r"annotations\[15\] has image_id None"),
        (lambda c: c["images"][1].update(id="8"), r"images\[1\] has id '8' and file_name '2.jpg': expected"),
        (lambda c: c["images"][1].update(id=7), r"images\[1\]: id 7 is also that of '1.jpg'"),
        (lambda c: c["images"][1].update(file_name="4.jpg"), r"\[\d\]: .*4.jpg is missing; --skip-missing leaves out"),
        (lambda c: c["images"][1].update(file_name="../a.jpg"), r"file_name '../a.jpg' is outside the folder"),
        (lambda c: c["images"][1].update(file_name="/etc/passwd"), r"file_name '/etc/passwd' is outside the folder"),
        (lambda c: c.pop("annotations"), r"c.json has no annotations: expected"),
        (lambda c: c.update(annotations={}), r"c.json:1 is not JSON: expected \[, found '{'"),
    ],
)
def test_broken_coco(camp: Camp, here: Path, change: Callable[[Any], object], said: str) -> None:
    whole = coco(CAPTIONS)
    change(whole)
    write(here / "c.json", whole)
    line = refused(camp, here, "coco", "--annotations", "c.json", "--images", "pictures")
    assert line.startswith("error: c.json")
    assert re.search(said, line)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "c.json:1 is not JSON: expected {, found 'the end'"),
        ("[]", r"c.json:1 is not JSON: expected {, found '\['"),
        ('{"images": [', "c.json:1, images.0. is not JSON"),
        ('{\n"images": [{"id": 1,\n"file_name": "1.jpg"} {', r"c.json:3 is not JSON: expected , or \], found '{'"),
        ('{"images": [], "annotations": []} x', "c.json:1: 'x' follows the end of the JSON object"),
        ('{"images": [], "images": []}', "c.json:1: images is there a second time"),
        ("{5: []}", "c.json:1: expected a key of a JSON object"),
        ('{"a": ' + "[" * 100_000, "c.json:1 is not JSON"),
        ('{"a": nul}', "c.json:1 is not JSON"),
        ('{"a": ' + "1" * 5000 + "}", "c.json:1 is not JSON"),
    ],
    ids=range(10),
)
def test_what_is_not_json(camp: Camp, here: Path, text: str, said: str) -> None:
    write(here / "c.json", text)
    assert re.search(said, refused(camp, here, "coco", "--annotations", "c.json", "--images", "pictures"))


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 64])
def test_items_are_read_in_chunks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    whole = {"n": 12345, "images": [{"name": "caf\xe9 \U0001f600"}, [1, 2.5], "x", -17, True], "empty": [], "m": "a\\"}
    file = tmp_path / "items.json"
    file.write_text("\ufeff" + json.dumps(whole, indent=1, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(text_files, "CHUNK", chunk)
    sizes: list[int] = []
    items = list(read_items(file, ("images", "empty"), sizes.append))
    assert [item.value for item in items] == whole["images"]
    assert items[1].where == f"{file}:7, images[1]"
    assert sum(sizes) == file.stat().st_size


def test_an_item_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "items.json", {"images": ["x" * 10_000]})
    monkeypatch.setattr(text_files, "CHUNK", 100)
    monkeypatch.setattr(text_files, "MAX_VALUE", 1000)
    with pytest.raises(BundleError, match=r"items\.json:1, images\[0\]: a value has more than 1000 characters"):
        list(read_items(tmp_path / "items.json", ("images",), lambda size: None))


def test_what_is_missing_is_counted_on_request(camp: Camp, here: Path) -> None:
    broken = coco({**CAPTIONS, "4.jpg": ["gone"], "5.jpg": []})
    broken["annotations"][-1]["caption"] = ""
    write(here / "c.json", broken)
    options = ("--annotations", "c.json", "--images", "pictures", "--output", "out", "--skip-missing")
    result = camp("data", "coco", *options, "--split", "test")
    assert result.out.splitlines() == [
        "out: test: 3 images, 14 captions",
        "captions that are empty, left out: 1",
        "pictures without captions, left out: 1",
        "pictures that are missing, left out: 1",
    ]
    assert pairs_of(here / "out", "test").keys() == CAPTIONS.keys()


def test_a_folder_without_any_of_the_pictures(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco({"4.jpg": ["gone"]}))
    options = ("coco", "--annotations", "c.json", "--skip-missing")
    line = refused(camp, here, *options, "--images", "pictures")
    assert line == "error: c.json: none of 1 pictures is in pictures"
    assert "--images nowhere is not a folder" in refused(camp, here, *options, "--images", "nowhere")


def test_an_output_with_other_things_is_refused(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco(CAPTIONS))
    result = camp("data", "coco", "--annotations", "c.json", "--images", "pictures", "--output", "pictures")
    assert result.err == (
        "error: pictures exists and is not an empty folder: name a new folder, or remove it first\n"  # and no progress
    )


@pytest.mark.parametrize("split", ["../up", "", "a/b", ".hidden", "x" * 40])
def test_a_split_names_a_folder(camp: Camp, here: Path, split: str) -> None:
    write(here / "c.json", coco(CAPTIONS))
    line = refused(camp, here, "coco", "--annotations", "c.json", "--images", "pictures", "--split", split)
    assert "expected a name such as train, dev or test" in line


def test_files_and_folders_of_coco_must_match(camp: Camp, here: Path) -> None:
    options = ("--annotations", "a", "--annotations", "b", "--images", "c", "--images", "d")
    assert "2 --annotations, 2 --images and 1 --split" in refused(camp, here, "coco", *options, "--split", "train")
    options = ("--annotations", "a", "--annotations", "b", "--images", "c", "--images", "../d")
    assert "several --images need one folder above them" in refused(camp, here, "coco", *options)


# Karpathy


def test_karpathy(camp: Camp, here: Path) -> None:
    write(here / "dataset_flickr30k.json", karpathy(SPLITS))
    result = camp("data", "karpathy", "dataset_flickr30k.json", "--images", "pictures/")
    assert result.out.splitlines() == [
        "data/karpathy: train: 1 images, 5 captions",
        "data/karpathy: dev: 1 images, 5 captions",
        "pictures of restval, left out: 1",
    ]
    camp("data", "karpathy", "dataset_flickr30k.json", "--images", "pictures/", "--output", "out", "--restval")
    assert pairs_of(here / "out", "train") == {name: CAPTIONS[name] for name in ("1.jpg", "3.jpg")}
    assert pairs_of(here / "out", "dev") == {"2.jpg": CAPTIONS["2.jpg"]}


@pytest.mark.parametrize("folder", ["train2014", ""])
def test_the_folder_of_a_picture_is_used_if_it_is_there(camp: Camp, here: Path, folder: str) -> None:
    if folder:
        (here / "pictures" / folder).mkdir()
        (here / "pictures/1.jpg").rename(here / "pictures" / folder / "1.jpg")
    write(here / "k.json", karpathy({"1.jpg": "test"}, filepath="train2014", cocoid=5))
    camp("data", "karpathy", "k.json", "--images", "pictures", "--output", "out")
    assert list(pairs_of(here / "out", "test")) == [f"{folder}/1.jpg" if folder else "1.jpg"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"filename": 5}, "has filename 5 and sentences"),
        ({"sentences": [{"tokens": ["a"]}]}, r"has filename '2.jpg' and sentences \[a dict\]: expected"),
        ({"sentences": [{"raw": ""}]}, "the caption is empty; --skip-missing"),
        ({"split": None}, "the split is None, expected a name such as train"),
        ({"split": "../x"}, "the split is '../x', expected a name such as train"),
        ({"filepath": "../up"}, "has filepath '../up' and cocoid None"),
        ({"cocoid": "5"}, "has filepath '' and cocoid '5'"),
        ({"filename": "4.jpg"}, "4.jpg is missing; --skip-missing leaves out such pictures"),
    ],
)
def test_broken_karpathy(camp: Camp, here: Path, change: dict[str, Any], said: str) -> None:
    whole = karpathy(SPLITS)
    whole["images"][1].update(change)
    lines = json.dumps(whole).replace('{"filename', '\n{"filename').replace('"sentences"', '"sentences" ')
    write(here / "k.json", lines)
    line = refused(camp, here, "karpathy", "k.json", "--images", "pictures")
    assert re.search(rf"^error: k.json:\d, images\[1\].*{said}", line)
