"""One caption of each image per epoch: which captions are drawn, and how many steps an epoch has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from camp_sdk import InputError
from camp_sdk.export.training.batches import OneCaptionSampler
from camp_sdk.export.training.run import Run, run_training
from tests.helpers.training import Owners, drawn_by, saved, tiny_config, write_features

STEPS = 4  # 16 images in batches of four

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("tiny_precomp"))


def order_of(
    counts: list[int], epoch: int = 0, seed: int = 1, neighbours: int = 1, share: tuple[int, int] = (0, 1)
) -> Any:
    """The captions of an epoch, and the images that they belong to."""
    data: Any = Owners(counts)
    return drawn_by(OneCaptionSampler(data, neighbours, seed, *share), epoch)


@pytest.mark.parametrize("counts", [[5] * 8, [1] * 8, [3, 1, 4, 1, 5, 2]], ids=["five", "one", "mixed"])
@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_every_image_comes_once_an_epoch_with_one_of_its_captions(counts: list[int], neighbours: int) -> None:
    assert sorted(order_of(counts, neighbours=neighbours)[1]) == list(range(len(counts)))


def test_captions_are_drawn_from_seed_and_epoch_alone_and_all_are_drawn() -> None:
    epochs = [order_of([5] * 40, epoch)[0] for epoch in range(60)]
    assert (order_of([5] * 40, 7)[0] == epochs[7]).all()
    assert (order_of([5] * 40, 7, seed=2)[0] != epochs[7]).any()
    drawn = np.bincount(np.concatenate(epochs), minlength=200)
    assert drawn.min() > 0  # each is left out with a probability of 0.8 ** 60
    by_place = drawn.reshape(40, 5).sum(0) / 2400
    assert np.abs(by_place - 0.2).max() < 0.04  # 2,400 draws: a deviation of 0.008


def test_devices_share_the_images_of_an_epoch() -> None:
    whole, _ = order_of([3] * 8, neighbours=2)
    shares = [order_of([3] * 8, neighbours=2, share=(device, 2))[0] for device in (0, 1)]
    assert (np.concatenate(shares) == whole).all()
    assert [len(order_of([3] * 9, share=(device, 2))[0]) for device in (0, 1)] == [4, 4]  # equal shares


def test_an_epoch_has_a_step_for_each_batch_of_images(precomputed: Path, tmp_path: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", captions="one")
    run_training(config, tmp_path)
    last = saved(config.output / "last.ckpt")
    assert last["global_step"] == 2 * STEPS
    (schedule,) = last["lr_schedulers"]
    assert schedule["total_steps"] == 2 * STEPS  # the one-cycle rate ends with the run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "one", "batch_size": 17}, "`batch_size` 17 is more than the 16 training images"),
        (
            {"captions": "one", "batch_size": 9, "devices": "2"},
            "`batch_size` 9 is more than the 8 training images of each of 2 devices",
        ),
        (
            {"variant": "gate_fusion", "batch_size": "81,4", "attention_epochs": 1},
            "`batch_size` 81 is more than the 80 training captions",
        ),
    ],
)
def test_batches_that_are_larger_than_an_epoch(
    precomputed: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Run(tiny_config(precomputed, tmp_path / "run", **options))
