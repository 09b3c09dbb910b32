"""The example of the released formats: it takes people's own files, and writes what the importer reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.released import RELEASED
from camp_sdk.export.released.files import read_checkpoint, read_vocabulary
from examples.released_checkpoint import synthetic
from tests.helpers.tiny import save_tiny_checkpoint

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/released_checkpoint"
RELEASED_FILES = Path(__file__).parent / "released"


@pytest.mark.parametrize("variant", RELEASED)
def test_a_checkpoint_written_as_released_reads_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    for name in ("easydict", "vocab"):  # the stand-ins go again
        monkeypatch.setitem(sys.modules, name, None)
    ours = save_tiny_checkpoint(tmp_path / "ours.ckpt", variant, False)
    checkpoint, vocab = synthetic.write_checkpoint(ours, tmp_path)
    found, (model, origin) = read_checkpoint(checkpoint), load_checkpoint(ours)
    assert found.config.variant == variant
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in found.weights.items())
    assert len(read_vocabulary(vocab)) == origin.model.vocabulary_size


def own_files(folder: Path) -> list[str]:
    """The recorded checkpoint, with features of its width."""
    data = folder / "mine_precomp"
    data.mkdir()
    rng = np.random.default_rng(0)
    for split in ("dev", "test"):
        np.save(data / f"{split}_ims.npy", rng.standard_normal((4, 9, 40), dtype=np.float32))
        (data / f"{split}_caps.txt").write_text("A dog 's ball .\n" * 20)
    checkpoint, vocab = RELEASED_FILES / "cross_attention.pth.tar", RELEASED_FILES / "vocab.pkl"
    return ["--checkpoint", str(checkpoint), "--vocab", str(vocab), "--data", str(data)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.released_checkpoint.run", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_own_files_go_the_whole_way(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "out"), "--query", "a dog", *own_files(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "4 images x 20 captions" in " ".join(done.stdout.split())
    assert "4. " in done.stdout
    assert (tmp_path / "out/bundle/manifest.json").is_file()


def test_own_files_that_do_not_fit_the_protocol(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "out"), "--protocol", "flickr30k", *own_files(tmp_path))
    assert done.returncode == 1
    assert "flickr30k is measured on 1000 images" in done.stderr


def test_half_of_ones_own_files_is_refused(tmp_path: Path) -> None:
    done = run("--output", str(tmp_path / "out"), *own_files(tmp_path)[:2])
    assert done.returncode == 1
    assert "--checkpoint, --vocab and --data go together" in done.stderr
