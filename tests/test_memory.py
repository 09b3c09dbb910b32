"""Features larger than memory: importing, training and evaluation walk a memory-mapped file without keeping it.

The files have the shape of Flickr30K's features (31,000 x 36 x 2,048 float32, 9.1 GB) with a tenth of its images; they
are sparse, so they take no disk. A process may grow by 4 / 9 of one, as it may by 4 GB of the 9.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.format import open_memmap

from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.checkpoint import KEY
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.files import forget_pages
from tests.helpers.tiny import tiny_origin

ROOT = Path(__file__).parents[1]
IMAGES, REGIONS, WIDTH = 3100, 36, 2048
BYTES = IMAGES * REGIONS * WIDTH * 4
ALLOWED = BYTES * 4 // 9

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")

# Each walks over every row but the import, which reads a few.
# Not by getrusage, whose peak a process inherits from its parent.
PEAK = """
import re, sys
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
folder = sys.argv[1]
"""
WALKS = {
    "training": """
import tempfile
from pathlib import Path
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
before = peak()
with tempfile.TemporaryDirectory() as run:
    sizes = {"width": 8, "word_width": 8, "epochs": 1, "batch_size": 62, "devices": "1"}
    run_training(TrainConfig(Path(folder), Path(run) / "run", **sizes), Path(run))
""",
    "evaluation": """
from camp_sdk import Retriever, evaluate, load_split
retriever = Retriever(sys.argv[2], "onnxruntime", threads=1)
before = peak()
assert evaluate(retriever, load_split(folder, "train"), 62).images == 3100
""",
    "import": """
from pathlib import Path
from camp_sdk.export.import_checkpoint import real_examples
before = peak()
images, captions = real_examples(Path(folder), 2048)
assert images.shape == (24, 36, 2048)
""",
}
PLAIN = """
import numpy as np
before = peak()
rows = np.load(folder + "/train_ims.npy", mmap_mode="r")
assert rows.max() > 0
"""


@pytest.fixture(scope="module")
def flickr_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("f30k_precomp")
    for split, images in (("train", IMAGES), ("dev", 24)):
        rows = open_memmap(folder / f"{split}_ims.npy", mode="w+", dtype=np.float32, shape=(images, REGIONS, WIDTH))
        rows[:, 0, 0] = np.arange(images)  # no two alike: a page of each is real
        del rows
        (folder / f"{split}_caps.txt").write_text("".join(f"picture {k} of a dog\n" for k in range(5 * images)))
    assert (folder / "train_ims.npy").stat().st_size > BYTES
    return folder


@pytest.fixture(scope="module")
def wide_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a narrow network that takes features of width 2,048."""
    folder, tiny = tmp_path_factory.mktemp("wide"), tiny_origin("paper", False)
    config = replace(tiny.model, feature_width=WIDTH)
    origin = replace(tiny, model=config, example_images=torch.ones(2, REGIONS, WIDTH))
    weights = {f"model.{name}": tensor for name, tensor in Camp(config).state_dict().items()}
    torch.save({"state_dict": weights, KEY: origin.as_dict()}, folder / "wide.ckpt")
    return export_bundle(folder / "wide.ckpt", folder / "bundle").folder


def growth(walk: str, *arguments: Path) -> int:
    """Bytes by which the peak of a process grows during a walk, beyond what its imports took."""
    command = [sys.executable, "-c", f"{PEAK}{walk}\nprint(peak() - before)", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_does_not_keep_the_file(flickr_shaped: Path, wide_bundle: Path, walk: str) -> None:
    assert growth(WALKS[walk], flickr_shaped, wide_bundle) < ALLOWED


def test_a_plain_walk_would(flickr_shaped: Path) -> None:
    """Otherwise the test above could not fail."""
    assert growth(PLAIN, flickr_shaped) > 2 * ALLOWED


def test_pages_that_were_given_back_read_the_same(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 4, 8), dtype=np.float32)
    np.save(tmp_path / "x.npy", rows)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for _ in range(2):
        np.testing.assert_array_equal(mapped[::2], rows[::2])
        forget_pages(mapped[::2])


def test_changes_of_a_private_map_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 2), np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="c")
    mapped[:] = 7
    forget_pages(mapped)
    assert (mapped == 7).all()


@pytest.mark.parametrize("other", [np.zeros((2, 2, 2)), [1, 2], None])
def test_other_things_are_left_alone(other: Any) -> None:
    forget_pages(other)
