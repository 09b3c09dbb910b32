"""Sources that are odd or hostile: `camp data` ends with one line, or writes what `load_split` reads."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import BundleError, load_split
from camp_sdk.datasets import metadata
from camp_sdk.datasets.metadata import write_rows
from tests.helpers.command import Camp
from tests.helpers.datasets import CAPTIONS, karpathy, pairs_of, refused, write, write_pictures

COCO = ("coco", "--annotations", "c.json", "--images", "pictures")
TABLE = ("csv", "t.csv", "--images", "pictures", "--file-column", "image", "--caption-column", "caption")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three pictures in pictures/, which commands run in."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "pictures")
    return tmp_path


def coco(*pairs: tuple[Any, Any], name: str = "1.jpg") -> str:
    """COCO's file: one picture, and annotations of it or others."""
    annotations = [{"image_id": key, "caption": caption} for key, caption in pairs]
    return json.dumps({"images": [{"id": 1, "file_name": name}], "annotations": annotations})


# Names


def test_a_name_in_two_spellings_is_one_picture(camp: Camp, here: Path) -> None:
    write(here / "t.csv", "image,caption\n1.jpg,a\n./1.jpg,b\n.//1.jpg,c\n2.jpg,d\n")
    camp("data", *TABLE, "--output", "out")
    assert pairs_of(here / "out", "train") == {"1.jpg": ["a", "b", "c"], "2.jpg": ["d"]}


@pytest.mark.parametrize("name", ["\udcff.jpg", "\ud800.jpeg"])
def test_a_name_that_no_file_of_text_can_hold(camp: Camp, here: Path, name: str) -> None:
    if name.startswith("\udcff") and sys.platform == "linux":  # as Python names a file that is not UTF-8
        (here / "pictures/1.jpg").rename(here / "pictures" / name)
    write(here / "c.json", coco((1, "a"), name=name))
    assert re.search(r"c\.json:1, annotations\[0\]: file_name .* is not valid Unicode", refused(camp, here, *COCO))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_no_file_of_text_can_hold(camp: Camp, here: Path) -> None:
    (here / "pictures").rename(here / "\udcff")
    write(here / "c.json", coco((1, "a")))
    line = refused(camp, here, "coco", "--annotations", "c.json", "--images", "\udcff")
    assert line == r"error: --images \udcff is not valid Unicode, which JSON needs: rename the folder"


@pytest.mark.parametrize("folder", ["x" * 5000, "y/" * 5000, "\0"])
def test_a_folder_that_cannot_be_is_not_there(camp: Camp, here: Path, folder: str) -> None:
    write(here / "k.json", karpathy({"1.jpg": "train"}, filepath=folder))
    camp("data", "karpathy", "k.json", "--images", "pictures", "--output", "out")
    assert list(pairs_of(here / "out", "train")) == ["1.jpg"]


def test_a_message_does_not_repeat_a_long_name(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco((1, "a"), name="x" * 100_000))
    assert len(refused(camp, here, *COCO)) < 300


def test_a_picture_in_two_splits(camp: Camp, here: Path) -> None:
    images = karpathy({"1.jpg": "train"})["images"] + karpathy({"1.jpg": "val"})["images"]
    write(here / "k.json", {"images": images})
    line = refused(camp, here, "karpathy", "k.json", "--images", "pictures")
    assert line.endswith("k.json:1, images[1]: '1.jpg' is in dev, and in train at k.json:1, images[0]")


def test_a_file_named_twice(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco((1, "a")))
    line = refused(camp, here, *COCO, "--annotations", "c.json")
    assert line == "error: --annotations names c.json twice: every caption would be there twice"


# Sizes


def test_an_error_early_in_a_large_file_is_named_as_what_it_is(camp: Camp, here: Path) -> None:
    """Not as a value that is too long, which is what reading on for its end would find."""
    text = coco(*((1, f"caption {k}" * 20) for k in range(30_000)))
    write(here / "c.json", text.replace('"caption": "caption 3c', '"caption" "caption 3c', 1))
    assert len(text) > 2 * (2 << 20)
    line = refused(camp, here, *COCO)
    assert line == "error: c.json:1, annotations[3] is not JSON (Expecting ':' delimiter)"


def test_a_caption_of_megabytes(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco((1, "a"), (1, "x" * 10_000_000)))
    assert "c.json:1, annotations[1]: a value has more than 4194304 characters" in refused(camp, here, *COCO)
    write(here / "c.json", coco((1, "a"), (1, "x " * 1_000_000)))
    assert "annotations[1]: the caption has 2000000 characters, expected at most 100000" in refused(camp, here, *COCO)


def test_a_number_of_thousands_of_digits(camp: Camp, here: Path) -> None:
    write(here / "c.json", coco((10**4000, "a")))
    assert "annotations[0]: image_id a whole number of 13288 bits is the id of none" in refused(camp, here, *COCO)


def test_what_is_written_can_be_read(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_ROW", 100)
    with pytest.raises(BundleError, match=r"'1\.jpg' has 5 captions of more than 100 characters"):
        write_rows(here / "metadata.jsonl", iter([("1.jpg", [caption * 5 for caption in CAPTIONS["1.jpg"]])]))


def test_lines_without_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "train").mkdir()
    monkeypatch.setattr(metadata, "MAX_ROW", 100)
    write(here / "train/metadata.jsonl", "\n" + "x" * 101)
    with pytest.raises(BundleError, match=r"metadata\.jsonl:2 has more than 100 characters"):
        load_split(here, "train")
    np.save(here / "test_ims.npy", np.zeros((1, 2, 3), np.float32))
    write(here / "test_caps.txt", "x" * ((1 << 20) + 1))
    with pytest.raises(BundleError, match=r"test_caps\.txt:1 has more than 1048576 characters"):
        load_split(here, "test")


# Files of another kind


@pytest.mark.parametrize(("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")])
def test_a_compressed_file_is_named_as_such(camp: Camp, here: Path, pack: Any, kind: str) -> None:
    for arguments, name in ((COCO, "c.json"), (TABLE, "t.csv")):
        (here / name).write_bytes(pack(b"x" * 1000))
        assert refused(camp, here, *arguments) == f"error: {name} is compressed with {kind}: unpack it first"


@pytest.mark.parametrize("text", ['{"images": [], "annotations": []}', '{"annotations": [], "images": [{"id": 1}]}'])
def test_a_file_without_captions(camp: Camp, here: Path, text: str) -> None:
    write(here / "c.json", text.replace('{"id": 1}', '{"id": 1, "file_name": "1.jpg"}'))
    assert refused(camp, here, *COCO) == "error: c.json: no picture has a caption and a split"


def test_the_line_that_is_not_text(camp: Camp, here: Path) -> None:
    (here / "c.json").write_bytes(coco((1, "a")).replace(", ", ",\n").encode()[:-1] + b"\xff}")
    assert "c.json:4 is not UTF-8 text" in refused(camp, here, *COCO)
    (here / "t.csv").write_bytes(b"image,caption\n1.jpg,a\n1.jpg,caf\xe9\n")
    assert "t.csv:3 is not UTF-8 text (byte 0xe9 after 9 characters)" in refused(camp, here, *TABLE)


@pytest.mark.parametrize("name", ["a\u2028b", "a\x0bb", "a\x1b[31mb", "a\x85b"])
def test_an_id_that_would_end_a_line(camp: Camp, here: Path, name: str) -> None:
    numbers = [base64.b64encode(np.ones((2, width), "<f4").tobytes()).decode() for width in (4, 6)]
    write(here / "f.tsv", "\t".join([name, "10", "10", "2", *numbers]))
    assert re.search(r"f\.tsv:1 has image_id '.*', expected a short name", refused(camp, here, "butd", "f.tsv"))


# A full disk

FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
from camp_sdk.commands.app import main
sys.argv = ["camp", "data", *sys.argv[1:], "--output", "out"]
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", ["coco", "butd"])
def test_a_disk_that_is_full(here: Path, kind: str) -> None:
    numbers = [base64.b64encode(np.ones((2, width), "<f4").tobytes()).decode() for width in (4, 2048)]
    write(here / "f.tsv", "\t".join(["1", "10", "10", "2", *numbers]))
    write(here / "c.json", coco(*((1, f"caption {k}") for k in range(50))))
    arguments = COCO if kind == "coco" else ("butd", "f.tsv")
    command = [sys.executable, "-W", "error", "-c", FULL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"})
    (line,) = [line for line in done.stderr.splitlines() if "\u2501" not in line and not line.startswith("reading")]
    assert (done.returncode, line) == (1, f"error: [Errno 27] File too large: '{here / 'out'}'")
    assert sorted(path.name for path in here.iterdir()) == ["c.json", "f.tsv", "pictures"]
