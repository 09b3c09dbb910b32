"""Training runs of a few seconds: what they write, that a killed run resumes with the same result, and errors."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from camp_sdk import BundleError, Direction, InputError, Metrics, Retriever, evaluate, load_split
from camp_sdk.export.network.camp import DISTANCE
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.encoders import VisionNet
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.export.training import module as training_module
from camp_sdk.export.training import run as run_module
from camp_sdk.export.training import trainer as trainer_module
from camp_sdk.export.training.batches import CaptionDataset, NeighbourSampler
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.image_store import decode_pictures
from camp_sdk.export.training.losses import CLAMP, Encoded
from camp_sdk.export.training.measure import measure_network
from camp_sdk.export.training.module import CampTraining, forget_words
from camp_sdk.export.training.resume import check_devices, check_output
from camp_sdk.export.training.run import Run, run_training
from camp_sdk.export.training.trainer import WholeCheckpoints
from tests.helpers.training import Owners, drawn_by, run_until_killed, saved, tiny_config, write_features

ROOT = Path(__file__).parents[1]
EPOCHS = 2
STEPS = 10  # 24 pictures x 5 captions in batches of twelve
STEPS_ON_FEATURES = 20  # 16 images x 5 captions
POOR = Metrics(Direction(0, 0, 0, 9), Direction(0, 0, 0, 9))

pytestmark = pytest.mark.usefixtures("one_thread")
both_variants = pytest.mark.parametrize("variant", ["paper", "scalar"])


@pytest.fixture(scope="module", params=["paper", "scalar"])
def run(request: pytest.FixtureRequest, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """An uninterrupted run of each variant on drawn pictures. Read only."""
    folder = tmp_path_factory.mktemp("run")
    # Negatives are still drawn from several candidates when the second epoch begins.
    config = tiny_config(scenes, folder / "run", variant=request.param, batch_size=12, warm_part=1.0, negatives=1)
    run_training(config, folder)
    return config


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of 16 images with three regions of width six, five captions each: twenty steps an epoch."""
    return write_features(tmp_path_factory.mktemp("tiny_precomp"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


def logits_of(checkpoint: Path) -> torch.Tensor:
    """The logits of a checkpoint's own examples."""
    model, origin = load_checkpoint(checkpoint)
    tokens = origin.open_tokenizer().encode(origin.example_captions)
    images = origin.example_batch()
    with torch.no_grad():
        features = images if model.vision is None else model.vision(images)
        return model(features, torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))


# What a run leaves behind


@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_a_checkpoint_loads_and_gives_logits(run: TrainConfig, name: str) -> None:
    logits = logits_of(run.output / name)
    assert logits.shape == (6, 30)
    assert logits.isfinite().all()


def test_a_checkpoint_holds_its_configuration(run: TrainConfig) -> None:
    _, origin = load_checkpoint(run.output / "last.ckpt")
    assert (origin.model.variant, origin.model.width, origin.model.picture_size) == (run.variant, 8, 96)
    assert origin.pixels is not None
    assert origin.training["epoch"] == EPOCHS - 1
    assert origin.training["learning_rate"] == 7e-4 * math.sqrt(12 / 24)  # it grows with the batch
    assert origin.training["neighbours"] == 2
    assert 0 <= origin.training["dev"]["rsum"] <= 600


def test_a_checkpoint_knows_nothing_of_this_machine(run: TrainConfig) -> None:
    _, origin = load_checkpoint(run.output / "last.ckpt")
    assert str(run.data) not in repr(origin.training)
    assert str(run.output) not in repr(origin.training)


def test_weights_move(run: TrainConfig) -> None:
    state = saved(run.output / "last.ckpt")
    assert state["global_step"] == EPOCHS * STEPS
    torch.manual_seed(run.seed)
    untrained = VisionNet(8, 96).state_dict()
    trained = {name.removeprefix("model.vision."): w for name, w in state["state_dict"].items() if ".vision." in name}
    assert not any(torch.equal(untrained[name], trained[name]) for name in untrained if "weight" in name)


def test_logs_are_there_as_csv_and_for_tensorboard(run: TrainConfig) -> None:
    (csv,) = run.output.rglob("metrics.csv")
    header, *rows = csv.read_text().splitlines()
    assert {"rsum", "pair_loss", "global_loss", "text_to_image_r1", "global_rsum"} <= set(header.split(","))
    assert len(rows) >= EPOCHS
    assert list(run.output.rglob("events.out.tfevents.*"))


# The same run twice


def test_the_same_seed_gives_the_same_weights(run: TrainConfig, tmp_path: Path, cache: Path) -> None:
    again = replace(run, output=tmp_path / "again")
    run_training(again, cache)
    first, second = (saved(config.output / "last.ckpt")["state_dict"] for config in (run, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("killed_at", [STEPS, STEPS + 6], ids=["first step of epoch 2", "midway"])
def test_a_run_resumed_after_a_kill_equals_the_uninterrupted_run(
    run: TrainConfig, tmp_path: Path, cache: Path, killed_at: int
) -> None:
    killed = replace(run, output=tmp_path / "killed")
    run_until_killed(killed, cache, killed.output, killed_at)
    run_training(replace(killed, resume=True), cache)
    whole, resumed = (saved(config.output / "last.ckpt") for config in (run, killed))
    assert resumed["global_step"] == whole["global_step"]
    assert all(torch.equal(whole["state_dict"][name], w) for name, w in resumed["state_dict"].items())
    assert logged(killed.output) == logged(run.output)


def logged(output: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv at each epoch's end, with values as they are written."""
    with (output / "logs" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["rsum"]]
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(EPOCHS)]
    return rows


def test_what_a_run_is_told_reaches_its_trainer(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", weight_decay=0.03, precision="bf16-mixed", epochs=1)
    trainer = trainer_module.build_trainer(config, [])
    assert (trainer.precision, trainer.gradient_clip_val) == ("bf16-mixed", trainer_module.CLIP_NORM)
    run_training(replace(config, precision="32-true"), cache)
    (optimiser,) = saved(config.output / "last.ckpt")["optimizer_states"]
    assert [group["weight_decay"] for group in optimiser["param_groups"]] == [0.03]


def test_a_step_weighs_its_losses(precomputed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(precomputed, tmp_path / "run", softmax_weight=3.0, global_weight=5.0)
    names = {"pair_loss": 1.0, "softmax_loss": 10.0, "drift_loss": 100.0}
    monkeypatch.setattr(training_module, "contrastive_loss", lambda *given: torch.tensor(1000.0))
    vectors = {"image.global": torch.zeros(1), "text.global": torch.zeros(1)}
    model = SimpleNamespace(
        region_features=lambda images: images,
        encode_images=lambda x: dict(vectors),
        encode_texts=lambda x, lengths: dict(vectors),
    )
    module: Any = SimpleNamespace(
        config=config,
        model=model,
        device="cpu",
        log_scale=None,
        log_dict=lambda *given, **options: None,
        _pair_losses=lambda *given: {name: torch.tensor(value) for name, value in names.items()},
    )
    batch: Any = SimpleNamespace(images=None, tokens=torch.ones(1, 3), lengths=[3], matches=None)
    expected = 1 + 3 * 10 + training_module.DRIFT_WEIGHT * 100 + 5 * 1000
    assert float(training_module.CampTraining.training_step(module, batch)) == pytest.approx(expected)


def test_another_seed_gives_other_weights(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    runs = [tiny_config(precomputed, tmp_path / str(seed), seed=seed, epochs=1) for seed in (0, 1)]
    first, second = (saved(run_training(config, cache))["state_dict"] for config in runs)
    assert not torch.equal(first["model.scorer.W_v.weight"], second["model.scorer.W_v.weight"])


# Features, early stopping


@both_variants
def test_a_run_on_precomputed_features(precomputed: Path, tmp_path: Path, cache: Path, variant: str) -> None:
    best = run_training(tiny_config(precomputed, tmp_path / "run", variant=variant), cache)
    model, origin = load_checkpoint(best)
    assert (origin.model.feature_width, origin.pixels, model.vision) == (6, None, None)
    assert (origin.training["neighbours"], origin.training["negatives"]) == (1, 1)
    assert logits_of(best).shape == (16, 80)


def test_an_epoch_shorter_than_the_logging_interval_warns_of_nothing(
    precomputed: Path, tmp_path: Path, cache: Path
) -> None:
    assert run_training(tiny_config(precomputed, tmp_path / "run", batch_size=16, epochs=1), cache).is_file()


def test_a_run_stops_early_when_rsum_does_not_rise(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "measure_network", lambda model, data, on_progress: (POOR, POOR))
    run_training(tiny_config(precomputed, tmp_path / "run", epochs=20, patience=2), cache)
    assert saved(tmp_path / "run/last.ckpt")["epoch"] == 2  # the first epoch, and two without a better one


def test_the_best_checkpoint_is_the_one_of_the_highest_rsum(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([POOR, replace(POOR, text_to_image=Direction(50, 50, 50, 1)), POOR])
    monkeypatch.setattr(training_module, "measure_network", lambda model, data, on_progress: (next(measured), POOR))
    best = run_training(tiny_config(precomputed, tmp_path / "run", epochs=3), cache)
    assert best == tmp_path / "run/best.ckpt"
    assert (saved(best)["epoch"], saved(tmp_path / "run/last.ckpt")["epoch"]) == (1, 2)


def test_negatives_narrow_from_the_whole_batch_to_the_hardest(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates: list[int] = []
    loss = training_module.pair_loss

    def spy(*arguments: Any) -> torch.Tensor:
        candidates.append(arguments[3])
        assert arguments[4] == 2
        return loss(*arguments)

    monkeypatch.setattr(training_module, "pair_loss", spy)
    run_training(tiny_config(precomputed, tmp_path / "run", warm_part=0.5, negatives=2), cache)
    assert candidates[0] == 4
    assert candidates == sorted(candidates, reverse=True)
    assert set(candidates[STEPS_ON_FEATURES:]) == {1}  # half of the run, which is one epoch of two


def test_pictures_meet_their_neighbours_and_three_negatives(
    scenes: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    negatives: set[int] = set()
    collate, loss = CaptionDataset.collate, training_module.pair_loss

    def watch(self: CaptionDataset, items: list[tuple[int, int]]) -> Any:
        batches.append(sorted(image for image, _ in items))
        return collate(self, items)

    def spy(*arguments: Any) -> torch.Tensor:
        negatives.add(arguments[4])
        return loss(*arguments)

    monkeypatch.setattr(CaptionDataset, "collate", watch)
    monkeypatch.setattr(training_module, "pair_loss", spy)
    run_training(tiny_config(scenes, tmp_path / "run", epochs=1), cache)
    assert negatives == {3}
    assert all(
        one + 1 == two and one % 2 == 0 for images in batches for one, two in zip(*[iter(images)] * 2, strict=True)
    )


# The released variants, and training in stages

STAGES = {"attention_epochs": 1, "fusion_epochs": 1, "epochs": 1, "seed": 2}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in saved(checkpoint)["state_dict"].items()}


def is_fusion(name: str) -> bool:
    """Whether a weight belongs to what the second stage trains: the fusion, the summaries and the matching network."""
    return name.startswith(("scorer.fc_", "scorer.reduce_layer_", "scorer.final_reduce_"))


@pytest.fixture(scope="module", params=["gate_fusion", "gate_fusion_new"])
def staged(request: pytest.FixtureRequest, precomputed: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """An uninterrupted run of three stages of an epoch each. Read only."""
    config = tiny_config(precomputed, tmp_path_factory.mktemp("staged") / "run", variant=request.param, **STAGES)
    assert run_training(config, config.data) == config.output / "best.ckpt"
    return config


@pytest.fixture(scope="module")
def whole(staged: TrainConfig) -> TrainConfig:
    """The same with two epochs of everything. Read only."""
    config = replace(staged, output=staged.output.with_name("whole"), epochs=2)
    run_training(config, config.data)
    return config


def test_each_stage_has_its_variant_and_its_folder(staged: TrainConfig) -> None:
    found = [load_checkpoint(staged.output / stage / "best.ckpt")[1].model for stage in ("attention", "fusion", ".")]
    attention = staged.variant.replace("gate_fusion", "cross_attention")
    assert [model.variant for model in found] == [attention, staged.variant, staged.variant]


def test_the_fusion_stage_trains_the_fusion_and_nothing_else(staged: TrainConfig) -> None:
    before, after = (weights(staged.output / stage / "best.ckpt") for stage in ("attention", "fusion"))
    kept = [name for name in before if not is_fusion(name) and name != "log_scale"]
    assert kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    moved = weights(staged.output / "fusion/last.ckpt")
    torch.manual_seed(staged.seed)
    untrained = Camp(load_checkpoint(staged.output / "fusion/last.ckpt")[1].model).state_dict()
    assert not any(torch.equal(untrained[name], moved[name]) for name in untrained if name.startswith("scorer.fc_"))


def test_the_last_stage_trains_everything(staged: TrainConfig) -> None:
    before, after = weights(staged.output / "fusion/best.ckpt"), weights(staged.output / "last.ckpt")
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))


@pytest.mark.parametrize("killed_at", [0, 3], ids=["between stages", "midway"])
@pytest.mark.parametrize("stage", ["fusion", "."])
def test_a_killed_stage_goes_on_as_if_nothing_had_happened(
    whole: TrainConfig, tmp_path: Path, cache: Path, stage: str, killed_at: int
) -> None:
    killed = replace(whole, output=tmp_path / "killed")
    run_until_killed(killed, cache, killed.output / stage, killed_at)
    run_training(replace(killed, resume=True), cache)
    expected = weights(whole.output / "last.ckpt")
    assert all(torch.equal(expected[name], w) for name, w in weights(killed.output / "last.ckpt").items())


@pytest.mark.parametrize("variant", ["cross_attention", "cross_attention_new"])
def test_a_cross_attention_model_learns_the_margin(
    precomputed: Path, tmp_path: Path, cache: Path, variant: str
) -> None:
    """Sixteen images with features drawn once can be learnt by heart."""
    config = tiny_config(precomputed, tmp_path / "run", variant=variant, width=16, epochs=15, learning_rate=2e-2)
    best = run_training(replace(config, global_weight=0.0, data=same_captions(precomputed, tmp_path)), cache)
    model, origin = load_checkpoint(best)
    assert not model.config.global_vectors
    assert origin.training["dev"]["text_to_image_r1"] > 50  # by chance 1 of 16


def same_captions(precomputed: Path, folder: Path) -> Path:
    """The training split as the dev split, too."""
    data = folder / "same"
    data.mkdir()
    for split in ("train", "dev"):
        for name in ("ims.npy", "caps.txt"):
            (data / f"{split}_{name}").write_bytes((precomputed / f"train_{name}").read_bytes())
    return data


def test_a_frozen_vision_network_keeps_its_statistics(scenes: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(scenes, tmp_path / "run", variant="gate_fusion", batch_size=12, **STAGES)
    run_training(config, cache)
    before, after = (weights(config.output / stage / "best.ckpt") for stage in ("attention", "fusion"))
    statistics = [name for name in before if "running" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)


# Starting from a checkpoint


def test_a_run_starts_from_a_checkpoint_with_its_words_and_sizes(
    run: TrainConfig, scenes: Path, tmp_path: Path, cache: Path
) -> None:
    start = run.output / "best.ckpt"
    config = TrainConfig(
        scenes, tmp_path / "run", run.variant, start, epochs=1, batch_size=12, learning_rate=1e-12, devices="1"
    )
    origin = load_checkpoint(run_training(config, cache))[1]
    expected = load_checkpoint(start)[1]
    assert (origin.model, origin.tokenizer, origin.pixels) == (expected.model, expected.tokenizer, expected.pixels)
    before, after = weights(start), weights(config.output / "last.ckpt")
    for name, weight in before.items():
        if "running" not in name and "num_batches" not in name and name != "log_scale":
            torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-9)  # ten steps of at most 1e-12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 16}, "`width` 16: .*best.ckpt has 8"),
        ({"variant": "gate_fusion"}, "holds weights that gate_fusion lacks: scorer.W_v.weight"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    run: TrainConfig, scenes: Path, tmp_path: Path, cache: Path, options: dict[str, Any], message: str
) -> None:
    start = run.output / "best.ckpt"
    with pytest.raises(InputError, match=message):
        run_training(tiny_config(scenes, tmp_path / "run", start=start, **options), cache)


def test_a_start_of_another_kind_of_data_is_refused(
    run: TrainConfig, precomputed: Path, tmp_path: Path, cache: Path
) -> None:
    with pytest.raises(InputError, match=r"takes pictures, but .* holds something else"):
        run_training(tiny_config(precomputed, tmp_path / "run", start=run.output / "best.ckpt"), cache)


# The learning rate


@pytest.mark.parametrize("pictures", [False, True])
def test_the_learning_rate_grows_with_the_batch(pictures: bool) -> None:
    def rate(**options: Any) -> float:
        return TrainConfig(Path("data"), Path("run"), **options).completed(pictures, {}, None).learning_rate

    default = {True: 24, False: 128}[pictures]
    assert rate(batch_size=default) == rate()
    assert rate(batch_size=4 * default) == pytest.approx(2 * rate())
    assert rate(batch_size=default // 4) == pytest.approx(rate() / 2)
    assert rate(batch_size=default // 4, learning_rate=0.25) == 0.25


# The order of captions


def order_of(captions_per_image: list[int], neighbours: int, epoch: int = 0, device: int = 0, devices: int = 1) -> Any:
    """Caption indices in the order of a sampler, and the images they belong to."""
    data: Any = Owners(captions_per_image)
    return drawn_by(NeighbourSampler(data, neighbours, 1, device, devices), epoch)


@pytest.mark.parametrize("counts", [[5] * 8, [1] * 8, [3, 1, 4, 1, 5, 2]], ids=["five", "one", "mixed"])
@pytest.mark.parametrize("neighbours", [1, 2, 3])
def test_every_caption_comes_once_an_epoch(counts: list[int], neighbours: int) -> None:
    captions, _ = order_of(counts, neighbours)
    assert sorted(captions) == list(range(sum(counts)))


def test_neighbours_stay_together() -> None:
    _, images = order_of([5] * 30, 3)
    groups = images.reshape(-1, 3)
    assert (groups == groups[:, :1] // 3 * 3 + np.arange(3)).all()
    assert (np.diff(groups[:, 0]) != 3).any()  # the groups themselves are shuffled


def test_images_with_most_captions_are_spread_over_the_epoch() -> None:
    _, images = order_of([5] * 20 + [10] * 2, 1)
    last = images[-24:]
    assert len(set(last)) > 12


def test_no_image_comes_twice_in_a_turn() -> None:
    _, images = order_of([5] * 30, 2)
    assert all(len(set(turn)) == 30 for turn in images.reshape(5, 30))


def test_every_epoch_and_turn_has_its_own_order() -> None:
    orders = [tuple(order_of([2] * 20, 2, epoch)[1][k : k + 20]) for epoch in (0, 1) for k in (0, 20)]
    assert len(set(orders)) == 4
    assert (order_of([2] * 20, 2, 1)[0] == order_of([2] * 20, 2, 1)[0]).all()


def test_devices_share_an_epoch_without_parting_neighbours() -> None:
    whole, _ = order_of([5] * 8, 2)
    shares = [order_of([5] * 8, 2, device=device, devices=2) for device in (0, 1)]
    assert (np.concatenate([captions for captions, _ in shares]) == whole).all()
    assert all((images.reshape(-1, 2) // 2 == images.reshape(-1, 2)[:, :1] // 2).all() for _, images in shares)


# Measuring


def test_the_network_and_its_bundle_measure_the_same(
    scenes: Path, picture_retriever: Retriever, checkpoints: Any, cache: Path
) -> None:
    split = load_split(scenes, "test")
    model, origin = load_checkpoint(checkpoints("scalar", True))
    assert origin.pixels is not None
    store = decode_pictures(split, origin.pixels, cache / "test.npy")
    measured = measure_network(model, CaptionDataset(split, store, origin.open_tokenizer(), origin.pixels))
    found = evaluate(picture_retriever, split)
    assert measured == (found.network, found.global_vectors)


def test_measuring_leaves_the_mode_of_the_network_alone(precomputed: Path, checkpoints: Any) -> None:
    model, origin = load_checkpoint(checkpoints("paper", False))
    split = load_split(precomputed, "dev")
    store = np.zeros((16, 3, 12), np.float32)
    for training in (True, False):
        model.train(training)
        measure_network(model, CaptionDataset(split, store, origin.open_tokenizer(), None))
        assert model.training is training


# Errors


def test_an_output_in_use_is_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="is not empty: name a new folder, or continue with `resume`"):
        run_training(tiny_config(precomputed, tmp_path), cache)


def test_resuming_without_a_checkpoint_is_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match=r"`resume`: .*run not found"):
        run_training(tiny_config(precomputed, tmp_path / "run", resume=True), cache)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"`resume`: .*run is not empty but has no run\.json"):
        run_training(tiny_config(precomputed, tmp_path / "run", resume=True), cache)
    assert (tmp_path / "run" / "mine.txt").exists()


def test_resuming_a_run_stopped_in_its_first_epoch_begins_anew(
    precomputed: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(precomputed, tmp_path / "run")
    run_until_killed(config, cache, config.output, 3)
    (config.output / "best.ckpt").touch()  # as a kill between the two checkpoints leaves it
    best = run_training(replace(config, resume=True), cache)
    printed = capsys.readouterr().err.replace("\n", "")
    assert "was stopped in its first epoch: starting again" in printed
    assert re.search(r"best\.ckpt: epoch [12] of 2, rsum \d+\.\d on dev", printed)
    whole = run_training(replace(config, output=tmp_path / "whole"), cache)
    assert all(torch.equal(weights(whole)[name], w) for name, w in weights(best).items())


def test_a_log_file_hears_how_far_an_epoch_is(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1)
    run_training(config, cache)
    assert "step" not in "".join(capsys.readouterr())  # it took no minute
    monkeypatch.setattr(training_module, "LOG_INTERVAL_S", 0.0)
    run_training(replace(config, output=tmp_path / "slow"), cache)
    printed = "".join(capsys.readouterr())
    assert all(f"epoch 1 of 1: step {k} of {STEPS_ON_FEATURES}\n" in printed for k in range(1, STEPS_ON_FEATURES + 1))


def test_a_folder_of_a_run_that_could_not_be_prepared_is_free(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.json.x").mkdir()  # as a kill leaves it
    with pytest.raises(InputError, match="no word occurs 1000 times"):
        run_training(tiny_config(precomputed, tmp_path / "run", min_count=1000), cache)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "prepare", lambda *of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_training(tiny_config(precomputed, tmp_path / "run"), cache)
    assert run_training(tiny_config(precomputed, tmp_path / "run", epochs=1), cache).is_file()


def test_a_run_killed_while_it_was_prepared_begins_with_resume(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1)

    def die(*of: Any) -> None:
        (tmp_path / "run/cache").mkdir()  # as --cache in the run's folder does
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "prepare", die)
        with pytest.raises(KeyboardInterrupt):
            run_training(config, cache)
    assert run_training(replace(config, resume=True), cache).is_file()


def test_resuming_on_another_number_of_devices_is_refused(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(precomputed, tmp_path / "run")
    run_until_killed(config, cache, config.output, STEPS_ON_FEATURES + 3)
    assert load_checkpoint(config.output / "last.ckpt")[1].training["on_devices"] == 1
    monkeypatch.setattr(run_module, "check_devices", lambda last, devices: check_devices(last, 2))
    with pytest.raises(InputError, match=r"last\.ckpt was trained on 1 devices, now there are 2: give `devices` 1"):
        run_training(replace(config, resume=True), cache)


def test_what_is_told_of_several_devices_is_of_the_one_that_is_saved(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = replace(POOR, text_to_image=Direction(50, 50, 50, 1))

    def broadcast(self: SingleDeviceStrategy, own: Any, src: int = 0) -> Any:
        return (first, POOR) if isinstance(own, tuple) else own

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", broadcast)
    best = run_training(tiny_config(precomputed, tmp_path / "run", epochs=1), cache)
    assert load_checkpoint(best)[1].training["dev"]["rsum"] == first.rsum == 150


def test_resuming_a_run_of_before_an_option_came(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1)
    run_training(config, cache)
    noted = json.loads((config.output / "run.json").read_text())
    del noted["options"]["unknown_words"]
    (config.output / "run.json").write_text(json.dumps(noted))
    assert run_training(replace(config, resume=True), cache).is_file()
    with pytest.raises(InputError, match=r"`unknown_words` was 0\.0, is now 0\.5"):
        run_training(replace(config, resume=True, unknown_words=0.5), cache)


def test_resuming_in_an_empty_folder_begins(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "run").mkdir()
    assert run_training(tiny_config(precomputed, tmp_path / "run", epochs=1, resume=True), cache).is_file()


@pytest.mark.parametrize("text", ["", "[]", '{"options": 3}', "[" * 100_000])
def test_resuming_a_run_whose_notes_are_broken_is_refused(
    precomputed: Path, tmp_path: Path, cache: Path, text: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(text)
    with pytest.raises(InputError, match=r"`resume`: .*run\.json is broken"):
        run_training(tiny_config(precomputed, tmp_path / "run", resume=True), cache)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_told_to_stop_does_not_end_as_if_it_were_done(
    precomputed: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    command = [
        sys.executable,
        str(ROOT / "export/train.py"),
        "--data",
        str(precomputed),
        "--output",
        str(tmp_path / "run"),
    ]
    command += ["--width", "16", "--word-width", "8", "--min-count", "1", "--batch-size", "8", "--epochs", "10000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (tmp_path / "run/last.ckpt").is_file():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.1)
        process.send_signal(number)
        printed = process.communicate(timeout=120)[1]
    assert process.returncode == code
    assert "--resume continues after the last finished epoch" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run/finished").exists()


def test_a_disk_that_is_full_leaves_no_half_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    WholeCheckpoints().save_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/last\.ckpt'"):
        WholeCheckpoints().save_checkpoint({"epoch": 2}, tmp_path / "last.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert saved(tmp_path / "last.ckpt") == {"epoch": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "`batch_size` 1: negatives come from the batch, expected 2 or more"),
        ({"batch_size": 81}, "`batch_size` 81 is more than the 80 training captions"),
        ({"batch_size": -3}, "`batch_size` -3: expected a number, 1 or more"),
        ({"epochs": -1}, "`epochs` -1: expected a number, 1 or more"),
        ({"neighbours": -1}, "`neighbours` -1: expected a number, 1 or more"),
        ({"negatives": -1}, "`negatives` -1: expected a number, 1 or more"),
        ({"width": -8}, "`width` -8: expected a number, 1 or more"),
        ({"min_count": 0}, "`min_count` 0: expected a number, 1 or more"),
        ({"min_count": 1000}, "no word occurs 1000 times"),
        ({"learning_rate": float("nan")}, "`learning_rate` nan: expected a positive number"),
        ({"warm_part": 1.5}, "`warm_part` 1.5: expected 0 to 1"),
        ({"seed": -1}, "`seed` -1: expected a number, 0 or more"),
        ({"seed": 2**32}, "`seed` 4294967296: expected 4294967295 or less"),
        (
            {"batch_size": 41, "devices": "2"},
            "`batch_size` 41 is more than the 40 training captions of each of 2 devices",
        ),
        ({"workers": -1}, "`workers` -1: expected a number, 0 or more"),
        ({"weight_decay": -1.0}, "`weight_decay` -1.0: expected a number, 0 or more"),
        ({"weight_decay": math.inf}, "`weight_decay` inf: expected a number, 0 or more"),
        ({"patience": -1}, "`patience` -1: expected a number, 0 or more"),
        ({"devices": "foo"}, "`devices` foo: expected auto, or a number, 1 or more"),
        ({"devices": "0"}, "`devices` 0: expected auto, or a number, 1 or more"),
        ({"learning_rate": -1.0}, "`learning_rate` -1.0: expected a positive number"),
        ({"attention_epochs": -1}, "`attention_epochs` -1: expected a number, 0 or more"),
        ({"attention_epochs": 1}, "`attention_epochs`: paper has no cross-attention model to start from"),
        ({"fusion_epochs": 1}, "`fusion_epochs`: nothing to freeze; give `attention_epochs`, or `start`"),
        ({"global_weight": float("nan")}, "`global_weight` nan: expected a number, 0 or more"),
        ({"picture_size": 96, "cache": Path("here")}, "`picture_size`, `cache`: only for pictures, but "),
        ({"variant": "papr"}, "`variant` papr: expected one of paper, scalar"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_options_no_run_can_have_are_refused(
    precomputed: Path, tmp_path: Path, cache: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        run_training(tiny_config(precomputed, tmp_path / "run", **options), cache)
    assert not (tmp_path / "run").exists()


def test_splits_of_other_features_are_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    for path in precomputed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    features = np.load(tmp_path / "dev_ims.npy")
    np.save(tmp_path / "dev_ims.npy", np.concatenate([features, features[..., :1]], axis=2))
    width = features.shape[2]
    with pytest.raises(InputError, match=f"features of {width} numbers in train, {width + 1} in dev"):
        run_training(tiny_config(tmp_path, tmp_path / "run"), cache)


def test_one_training_image_is_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    for path in precomputed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    np.save(tmp_path / "train_ims.npy", np.load(tmp_path / "train_ims.npy")[:1])
    lines = (tmp_path / "train_caps.txt").read_text().splitlines()[:5]
    (tmp_path / "train_caps.txt").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="one training image; negatives are other images"):
        run_training(tiny_config(tmp_path, tmp_path / "run"), cache)


@pytest.mark.parametrize("size", [-96, 48, 100])
def test_a_picture_size_no_network_can_have_is_refused(scenes: Path, tmp_path: Path, cache: Path, size: int) -> None:
    with pytest.raises(InputError, match=r"picture[_ ]size"):
        run_training(tiny_config(scenes, tmp_path / "run", picture_size=size), cache)


def test_an_unknown_precision_is_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(InputError, match="precision"):
        run_training(tiny_config(precomputed, tmp_path / "run", precision="8-bit"), cache)


@pytest.mark.parametrize(
    ("option", "value"), [("width", 16), ("epochs", 3), ("batch_size", 8), ("seed", 1), ("attention_epochs", 2)]
)
def test_resuming_with_another_option_is_refused(
    precomputed: Path, tmp_path: Path, cache: Path, option: str, value: int
) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1, variant="gate_fusion")
    run_training(config, cache)
    with pytest.raises(InputError, match=f"`{option}` was {getattr(config, option)}, is now {value}"):
        run_training(replace(config, resume=True, **{option: value}), cache)


@pytest.mark.parametrize("changed", ["train_caps.txt", "dev_caps.txt", "train_ims.npy", "dev_ims.npy"])
def test_resuming_with_other_data_is_refused(precomputed: Path, tmp_path: Path, cache: Path, changed: str) -> None:
    data = same_captions(precomputed, tmp_path)
    config = tiny_config(data, tmp_path / "run")
    run_until_killed(config, cache, config.output, 3)
    split, kind = changed.split("_")
    if kind == "ims.npy":
        np.save(data / changed, np.load(data / changed)[::-1])
    else:
        (data / changed).write_text((data / changed).read_text().replace("pink", "teal"))
    with pytest.raises(InputError, match=f"was started with other data than the {split} split of .* now holds"):
        run_training(replace(config, resume=True), cache)


def test_resuming_with_another_picture_is_refused(scenes: Path, tmp_path: Path, cache: Path) -> None:
    data = tmp_path / "scenes"
    shutil.copytree(scenes, data)
    config = tiny_config(data, tmp_path / "run", batch_size=12)
    run_until_killed(config, cache, config.output, 3)
    picture = next((data / "dev").glob("*.*g"))
    picture.write_bytes(picture.read_bytes() + b"\0")
    with pytest.raises(InputError, match="was started with other data than the dev split"):
        run_training(replace(config, resume=True), cache)


def test_resuming_from_another_start_is_refused(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    starts = [run_training(tiny_config(precomputed, tmp_path / str(k), epochs=1, seed=k), cache) for k in (0, 1)]
    config = tiny_config(precomputed, tmp_path / "run", start=starts[0])
    run_until_killed(config, cache, config.output, 3)
    for start in (None, starts[1]):
        with pytest.raises(InputError, match="was started with another `start`, or without one"):
            run_training(replace(config, resume=True, start=start), cache)


@pytest.mark.parametrize("staged", [False, True], ids=["inside a stage", "between stages"])
def test_resuming_with_other_words_is_refused(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, staged: bool
) -> None:
    """Another version of the library may order a vocabulary otherwise."""
    config = tiny_config(precomputed, tmp_path / "run", variant="gate_fusion", **(STAGES if staged else {}))
    begun = config.output / "fusion" if staged else config.output
    run_until_killed(config, cache, begun, 0 if staged else STEPS_ON_FEATURES + 3)
    other = build_tokenizer([*load_split(precomputed, "train").captions, "teal"], 1).to_str()
    monkeypatch.setattr(run_module, "make_tokenizer", lambda config, train: other)
    with pytest.raises(InputError, match=r"and its words; these data lead to .* or to other words"):
        run_training(replace(config, resume=True), cache)


def test_a_finished_run_that_was_moved_resumes_to_its_best(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1)
    run_training(config, cache)
    (tmp_path / "run/finished").unlink()  # as if killed right before
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = replace(config, output=tmp_path / "moved", resume=True)
    assert run_training(moved, cache) == tmp_path / "moved/best.ckpt"


def test_a_moved_run_keeps_its_best(
    precomputed: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = replace(POOR, text_to_image=Direction(50, 50, 50, 1))
    measured = iter([good, POOR, POOR])
    monkeypatch.setattr(training_module, "measure_network", lambda model, data, on_progress: (next(measured), POOR))
    config = tiny_config(precomputed, tmp_path / "run", epochs=2)
    run_until_killed(config, cache, config.output, STEPS_ON_FEATURES)
    (tmp_path / "run").rename(tmp_path / "moved")
    best = run_training(replace(config, output=tmp_path / "moved", resume=True), cache)
    assert saved(best)["epoch"] == 0


def test_without_global_vectors_every_trained_weight_gets_a_gradient(
    precomputed: Path, tmp_path: Path, cache: Path
) -> None:
    """Several devices would stop at one that does not."""
    config = tiny_config(precomputed, tmp_path / "run", global_weight=0.0).completed(False, {}, None)
    data, origin = Run(config).prepare(cache)
    module = CampTraining(origin, config, data)
    names = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert "log_scale" not in names
    batch = data.train.collate([data.train[index] for index in range(0, 40, 5)])
    image, text = module.model.encode_images(batch.images), module.model.encode_texts(batch.tokens, batch.lengths)
    training_module.pair_loss(module.model.scorer, Encoded(image, text, batch.lengths), batch.matches).backward()
    assert {name for name, weight in module.named_parameters() if weight.grad is not None} == names


@pytest.mark.parametrize("split", ["train", "dev"])
def test_a_missing_split_is_named(precomputed: Path, tmp_path: Path, cache: Path, split: str) -> None:
    for other in {"train", "dev"} - {split}:
        for name in (f"{other}_ims.npy", f"{other}_caps.txt"):
            (tmp_path / name).write_bytes((precomputed / name).read_bytes())
    with pytest.raises(BundleError, match=f"has no split '{split}'"):
        run_training(tiny_config(tmp_path, tmp_path / "run"), cache)


def test_splits_of_different_kinds_are_refused(precomputed: Path, scenes: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "train").symlink_to(scenes / "train")
    for name in ("dev_ims.npy", "dev_caps.txt"):
        (tmp_path / name).write_bytes((precomputed / name).read_bytes())
    with pytest.raises(InputError, match="one of train and dev holds pictures, the other features"):
        run_training(tiny_config(tmp_path, tmp_path / "run"), cache)


def test_features_with_nan_are_refused_by_image(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    for path in precomputed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    features = np.load(tmp_path / "train_ims.npy")
    features[3, 1, 2] = np.nan
    np.save(tmp_path / "train_ims.npy", features)
    with pytest.raises(InputError, match="the features of image 3 are NaN or infinite"):
        run_training(tiny_config(tmp_path, tmp_path / "run"), cache)


# The script


def test_every_option_is_in_the_help_of_the_script() -> None:
    command = [sys.executable, "export/train.py", "--help"]
    environment = {"PATH": "", "TERM": "dumb", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    missing = [f.name for f in fields(TrainConfig) if f"--{f.name.replace('_', '-')}" not in done.stdout]
    assert not missing


# Small data sets


def test_forgotten_words_are_unknown_and_markers_stay() -> None:
    tokens = torch.tensor([[1, 7, 8, 3, 9, 2, 0]] * 400)
    torch.manual_seed(0)
    forgotten = forget_words(tokens, 0.25)
    kept = forgotten == tokens
    assert kept[:, [0, 3, 5, 6]].all()
    assert (forgotten[~kept] == 3).all()
    assert 0.2 < (~kept)[:, [1, 2, 4]].float().mean() < 0.3  # 1,200 draws: a deviation of 0.0125
    assert forget_words(tokens, 0.0) is tokens


def test_pairs_of_a_part_of_the_batch_are_the_loss_of_that_part(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", batch_size=12, pair_batch=5, softmax_weight=1.0, negatives=1)
    config = config.completed(False, {}, None)
    data, origin = Run(config).prepare(cache)
    module = CampTraining(origin, config, data)
    module._candidates = lambda size: 1  # type: ignore[method-assign]  # no trainer knows the step here
    batch = data.train.collate([data.train[index] for index in range(0, 60, 5)])
    image, text = module.model.encode_images(batch.images), module.model.encode_texts(batch.tokens, batch.lengths)
    for side in (image, text):
        side.pop(f"{next(iter(side)).split('.')[0]}.global")
    encoded = Encoded(image, text, batch.lengths)
    part = encoded.first(5)
    assert [len(tensor) for tensor in (*part.image.values(), *part.text.values(), part.lengths)] == [5] * 5
    logits = module.model.scorer(part.image, part.text)
    expected = {
        "pair_loss": training_module.pair_loss(module.model.scorer, part, batch.matches[:5, :5]),
        "softmax_loss": training_module.softmax_loss(logits.clamp(-CLAMP, CLAMP), batch.matches[:5, :5]),
        "drift_loss": training_module.drift_loss(logits),
    }
    torch.testing.assert_close(module._pair_losses(encoded, batch.matches), expected)


def test_dropout_is_for_training_alone(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", dropout=0.5, word_dropout=0.5).completed(False, {}, None)
    data, origin = Run(config).prepare(cache)
    model = CampTraining(origin, config, data).model
    features = torch.ones(2, 3, 6)
    assert not torch.equal(model.encode_images(features)["image.V"][0], model.encode_images(features)["image.V"][1])
    model.eval()
    torch.testing.assert_close(model.encode_images(features)["image.V"][0], model.encode_images(features)["image.V"][1])


def test_a_run_may_begin_with_a_distance(precomputed: Path, tmp_path: Path, cache: Path) -> None:
    begun = {}
    for distance in (False, True):
        config = tiny_config(precomputed, tmp_path / f"{distance}", begin_as_distance=distance, learning_rate=1e-9)
        scorer = load_checkpoint(run_training(config, cache))[0].scorer
        begun[distance] = scorer.mlp[2].weight.flatten()
    expected = torch.full_like(begun[True], -DISTANCE / len(begun[True]))
    torch.testing.assert_close(begun[True], expected)  # steps of 1e-9 leave it there
    assert begun[False].std() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 1.0}, "`dropout` 1.0: expected 0 to 1, below 1"),
        ({"word_dropout": -0.1}, "`word_dropout` -0.1: expected"),
        ({"begin_as_distance": True, "variant": "gate_fusion"}, "`begin_as_distance`: not possible for gate_fusion"),
        ({"unknown_words": math.nan}, "`unknown_words` nan: expected"),
        ({"pair_batch": 1}, "`pair_batch` 1: negatives come from the batch"),
        ({"pair_batch": -1}, "`pair_batch` -1: expected a number, 0 or more"),
        ({"softmax_weight": -1.0}, "`softmax_weight` -1.0: expected a number, 0 or more"),
    ],
)
def test_parts_and_weights_no_run_can_have(
    precomputed: Path, tmp_path: Path, cache: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run_training(tiny_config(precomputed, tmp_path / "run", **options), cache)


def test_a_record_with_other_values_is_reported_on_one_short_line(precomputed: Path, tmp_path: Path) -> None:
    config = TrainConfig(precomputed, tmp_path / "run", resume=True)
    record = {"options": config.as_dict(), "train": "0", "dev": "0"}
    options = record["options"] | {"width": "\n" * 3000, "fit": ["x" * 9000] * 9}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record | {"options": options}))
    with pytest.raises(InputError, match="was started with other options: `width` was") as refused:
        check_output(config, record)
    assert len(str(refused.value)) < 1000
    assert "\n" not in str(refused.value)
