"""The options that make training equal to the released code's: each for itself, and the recipe that sets them all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from camp_sdk import Direction, InputError, Metrics
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.vocabulary import vocabulary_of
from camp_sdk.export.training import module as training_module
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.losses import cosine_bce, loss_of_pairs, margin_ranking, matching_bce
from camp_sdk.export.training.module import CampTraining
from camp_sdk.export.training.recipe import RECIPE
from camp_sdk.export.training.run import Run, run_training, stages_of
from examples.released_checkpoint import synthetic
from tests.helpers.command import Camp as Command
from tests.helpers.training import run_until_killed, saved, tiny_config, write_features

STAGES = {"attention_epochs": 1, "fusion_epochs": 1, "epochs": 1}
STEPS_OF_ONE = 4  # 16 images in batches of four
POOR = Metrics(Direction(0, 0, 0, 9), Direction(0, 0, 0, 9))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("tiny_precomp"))


def completed(**options: Any) -> TrainConfig:
    """The complete options of a run on features."""
    return TrainConfig(Path("data"), Path("run"), **options).completed(False, {}, None)


# The loss of cosines


def test_the_loss_of_cosines_is_the_released_equation() -> None:
    m, t, i = torch.tensor([0.9, 0.2]), torch.tensor([0.75, -0.3]), torch.tensor([1.0, 0.5])
    low, high = 1e-6, 1 - 1e-6
    texts = -(math.log(0.9) + math.log(1 - 0.75)) - (math.log(0.2) + math.log(1 - low))
    images = -(math.log(0.9) + math.log(1 - high)) - (math.log(0.2) + math.log(1 - 0.5))
    # Float32: 1 - (1 - 1e-6) has four digits, and its logarithm, 13.8, five.
    assert float(cosine_bce(m, t, i)) == pytest.approx((texts + images) / 2, rel=1e-2)
    exact = [x.double() for x in (m, t, i)]
    assert float(cosine_bce(*exact)) == pytest.approx((texts + images) / 2, rel=1e-6)  # the inputs are float32


def test_cosines_beyond_the_clamp_have_no_gradient() -> None:
    m, t, i = (torch.tensor([x], requires_grad=True) for x in (-0.5, -0.1, 0.3))
    cosine_bce(m, t, i).backward()
    gradients = [x.grad.item() for x in (m, t, i) if x.grad is not None]
    assert gradients == pytest.approx([0, 0, 1 / 0.7], rel=1e-6)  # float32


def test_the_loss_suits_the_scorer_or_is_the_one_asked_for() -> None:
    assert [loss_of_pairs("none", loss) for loss in ("", "margin", "bce")] == [margin_ranking] * 2 + [cosine_bce]
    assert [loss_of_pairs("sigmoid", loss) for loss in ("", "bce")] == [matching_bce] * 2


@torch.no_grad()
def test_the_first_stage_trains_with_the_loss_asked_for(precomputed: Path, tmp_path: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", variant="cross_attention_new", negatives=1, loss="bce")
    module, batch = module_of(config.completed(False, {}, None), tmp_path)
    found = {}
    for loss in ("", "bce", "margin"):
        module.config = replace(module.config, loss=loss)
        found[loss] = float(module._pair_losses(*encoded(module, batch))["pair_loss"])
    assert found[""] == found["margin"] != found["bce"]


def module_of(config: TrainConfig, scratch: Path) -> tuple[CampTraining, Any]:
    """The training of a completed run on one batch of eight pairs, always with the hardest negatives."""
    data, origin = Run(config).prepare(scratch)
    torch.manual_seed(0)
    module = CampTraining(origin, config, data)
    module._candidates = lambda size: 1  # type: ignore[method-assign]  # no trainer knows the step here
    module.log_dict = lambda *given, **options: None  # type: ignore[method-assign,assignment]  # no trainer
    return module, data.train.collate([data.train[index] for index in range(0, 80, 10)])


def encoded(module: CampTraining, batch: Any) -> tuple[training_module.Encoded, torch.Tensor]:
    image, text = module.model.encode_images(batch.images), module.model.encode_texts(batch.tokens, batch.lengths)
    image.pop("image.global"), text.pop("text.global")
    return training_module.Encoded(image, text, batch.lengths), batch.matches


@torch.no_grad()
def test_a_sum_over_the_batch_is_its_mean_times_its_pairs(precomputed: Path, tmp_path: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", negatives=2, softmax_weight=0.3).completed(False, {}, None)
    module, batch = module_of(config, tmp_path)
    mean = float(module.training_step(batch))
    module.config = replace(config, reduction="sum")
    assert float(module.training_step(batch)) == pytest.approx(8 * mean, rel=1e-6)  # float32


# A value for each stage


def test_stages_have_their_own_values() -> None:
    config = completed(
        variant="gate_fusion_new",
        **STAGES,
        batch_size="256,128,64",
        optimiser="adam,sgd,adamw",
        decay_every="30, 20, 0",
        global_weight="0.5,0,0",
    )
    found = [(s.config.batch_size, s.config.optimiser, s.config.decay_every) for s in stages_of(config)]
    assert found == [(256, "adam", 30), (128, "sgd", 20), (64, "adamw", 0)]
    assert [stage.config.global_weight for stage in stages_of(config)] == [0.5, 0.0, 0.0]
    rates = [5e-4 * math.sqrt(batch / 128) for batch in (256, 128, 64)]  # each suits its batch
    assert [stage.config.learning_rate for stage in stages_of(config)] == pytest.approx(rates)


def test_one_value_is_that_of_all_stages_and_is_recorded_as_a_number() -> None:
    for given in (32, "32", "32,32,32"):
        config = completed(variant="gate_fusion_new", **STAGES, batch_size=given)
        assert config.batch_size == 32
        assert isinstance(config.as_dict()["batch_size"], int)
        assert [stage.config.batch_size for stage in stages_of(config)] == [32] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "64,32"}, "`batch_size` 64,32: 2 values for one stage of this run: expected one for each"),
        ({"batch_size": "8,8", "variant": "gate_fusion", **STAGES}, "`batch_size` 8,8: 2 values for the 3 stages"),
        ({"batch_size": "a"}, "`batch_size` a: expected a whole number, or one for each stage, with commas"),
        ({"batch_size": "8.5"}, "`batch_size` 8.5: expected a whole number"),
        ({"batch_size": "8,,4"}, "`batch_size` 8,,4: expected a whole number"),
        ({"batch_size": "8,1,4", "variant": "gate_fusion", **STAGES}, "`batch_size` 1: negatives come from the batch"),
        ({"learning_rate": "fast"}, "`learning_rate` fast: expected a number"),
        ({"learning_rate": "1e-3,-1,1", "variant": "gate_fusion", **STAGES}, "`learning_rate` -1.0: expected a posi"),
        ({"optimiser": "lion"}, "`optimiser` lion: expected one of adamw, adam, sgd"),
        ({"decay_every": 3}, "`decay_every` 3: adamw has a one-cycle rate; expected adam or sgd"),
        ({"optimiser": "sgd", "decay_every": -1}, "`decay_every` -1: expected a number, 0 or more"),
        ({"loss": "margin"}, "`loss` margin: ranks cosines, but paper gives logits: expected bce"),
        ({"loss": "margin", "variant": "gate_fusion"}, "`loss` margin: ranks cosines, but gate_fusion gives logits"),
        ({"loss": "hinge"}, "`loss` hinge: expected one of bce, margin"),
        ({"captions": "two"}, "`captions` two: expected one of all, one"),
        ({"init": "xavier"}, "`init` xavier: expected one of default, released"),
        ({"reduction": "max"}, "`reduction` max: expected one of mean, sum"),
        ({"recipe": "paper"}, "`recipe` paper: expected one of released"),
        ({"evaluate_every": 0}, "`evaluate_every` 0: expected a number, 1 or more"),
        ({"vocabulary_splits": "train,"}, "`vocabulary_splits` train,: expected splits such as train,dev"),
        ({"vocabulary_splits": "dev,dev"}, "`vocabulary_splits` dev,dev: expected splits"),
        ({"init": "released", "start": Path("a.ckpt")}, "`init` released: `start` a.ckpt gives the initial weights"),
        ({"vocabulary_splits": "dev", "start": Path("a.ckpt")}, "`vocabulary_splits` dev: a.ckpt has its own words"),
        ({"word_vectors": Path("w.txt"), "words": "other"}, "`word_vectors` w.txt: other has its own words"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_options_no_run_can_have_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        completed(**options)
    assert str(refused.value).startswith(message)


# Optimisers


@pytest.mark.parametrize(("optimiser", "momentum"), [("sgd", 0.9), ("adam", None)])
def test_the_rate_falls_in_steps_and_a_resumed_run_goes_on_with_it(
    precomputed: Path, tmp_path: Path, optimiser: str, momentum: float | None
) -> None:
    options: dict[str, Any] = {"optimiser": optimiser, "decay_every": 2, "learning_rate": 0.01, "captions": "one"}
    whole = tiny_config(precomputed, tmp_path / "whole", epochs=5, **options)
    run_training(whole, tmp_path)
    state = saved(whole.output / "last.ckpt")
    (group,) = state["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group.get("momentum")) == (pytest.approx(1e-4), momentum)  # after four epochs
    killed = replace(whole, output=tmp_path / "killed")
    run_until_killed(killed, tmp_path, killed.output, 3 * STEPS_OF_ONE + 1)
    run_training(replace(killed, resume=True), tmp_path)
    resumed = saved(killed.output / "last.ckpt")["state_dict"]
    assert all(torch.equal(resumed[name], weight) for name, weight in state["state_dict"].items())


# Measuring every few epochs


def good(rsum: float) -> tuple[Metrics, Metrics]:
    return replace(POOR, text_to_image=Direction(rsum, 0, 0, 1)), POOR


def test_some_epochs_and_the_last_are_measured(
    precomputed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([good(10), good(30), good(20)])
    monkeypatch.setattr(training_module, "measure_network", lambda *given: next(measured))
    config = tiny_config(precomputed, tmp_path / "run", captions="one", epochs=5, evaluate_every=2)
    run_until_killed(config, tmp_path, config.output, 2 * STEPS_OF_ONE + 1)  # in the third epoch
    run_until_killed(replace(config, resume=True), tmp_path, config.output, 3 * STEPS_OF_ONE + 1)
    last = load_checkpoint(config.output / "last.ckpt")[1].training
    assert (last["epoch"], last["dev"]) == (2, {})  # it is not the second's
    best = load_checkpoint(run_training(replace(config, resume=True), tmp_path))[1].training
    assert (best["epoch"], best["dev"]["rsum"]) == (3, 30)
    assert load_checkpoint(config.output / "last.ckpt")[1].training["dev"]["rsum"] == 20
    assert next(measured, None) is None


def test_patience_counts_measurements(precomputed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "measure_network", lambda *given: (POOR, POOR))
    config = tiny_config(precomputed, tmp_path / "run", captions="one", epochs=20, evaluate_every=3, patience=2)
    run_training(config, tmp_path)
    assert saved(config.output / "last.ckpt")["epoch"] == 8  # the third epoch, and two measurements without a better


# The vocabulary


def test_the_vocabulary_is_that_of_the_splits_asked_for(precomputed: Path, tmp_path: Path) -> None:
    for path in precomputed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    dev = tmp_path / "dev_caps.txt"
    dev.write_text(dev.read_text().replace("thing", "gadget"))
    words = {}
    for splits in ("train", "train,dev"):
        config = tiny_config(tmp_path, tmp_path / "run", vocabulary_splits=splits)
        words[splits] = set(vocabulary_of(Run(config).prepare(tmp_path)[1].tokenizer))
    assert words["train,dev"] - words["train"] == {"gadget"}


# The whole recipe


def test_the_recipe_sets_its_options_and_what_is_given_besides_wins() -> None:
    config = completed(variant="gate_fusion_new", recipe="released", **STAGES)
    assert {name: getattr(config, name) for name in RECIPE} == RECIPE
    first, second, third = (stage.config for stage in stages_of(config))
    assert [first.batch_size, second.batch_size, third.batch_size] == [256, 128, 128]
    assert [first.optimiser, second.optimiser, third.optimiser] == ["adam", "sgd", "sgd"]
    assert (first.learning_rate, first.weight_decay, first.decay_every) == (1e-3, 0, 50)
    assert (second.learning_rate, second.weight_decay, second.decay_every) == (1e-2, 1e-4, 45)
    own = completed(variant="gate_fusion_new", recipe="released", batch_size=32, loss="bce", warm_part=0.5, **STAGES)
    changed = {name for name, value in own.as_dict().items() if config.as_dict()[name] != value}
    assert changed == {"batch_size", "warm_part"}


def test_the_recipe_suits_the_stages_that_are_trained() -> None:
    alone = completed(variant="cross_attention_new", recipe="released")
    assert (alone.batch_size, alone.optimiser, alone.learning_rate) == (256, "adam", 1e-3)
    started = completed(variant="gate_fusion_new", recipe="released", start=Path("a.ckpt"), fusion_epochs=1)
    assert (started.init, started.vocabulary_splits) == ("default", "train")  # the checkpoint has its own
    assert (started.optimiser, started.decay_every) == ("sgd", "45,50")


def test_a_run_of_before_these_options_resumes(precomputed: Path, tmp_path: Path) -> None:
    config = tiny_config(precomputed, tmp_path / "run", epochs=1)
    run_training(config, tmp_path)
    record = json.loads((config.output / "run.json").read_text())
    new = ("recipe", "word_vectors", "captions", "optimiser", "decay_every", "init", "loss", "reduction")
    for name in (*new, "evaluate_every", "vocabulary_splits"):
        del record["options"][name]
    (config.output / "run.json").write_text(json.dumps(record))
    assert run_training(replace(config, resume=True), tmp_path).is_file()
    with pytest.raises(InputError, match=r"`captions` was all, is now one"):
        run_training(replace(config, resume=True, captions="one"), tmp_path)


def test_a_killed_run_of_the_recipe_goes_on_as_if_nothing_had_happened(precomputed: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"variant": "gate_fusion_new", "recipe": "released", "batch_size": "8,4,4", **STAGES}
    whole = tiny_config(precomputed, tmp_path / "whole", **options)
    run_training(whole, tmp_path)
    killed = replace(whole, output=tmp_path / "killed")
    run_until_killed(killed, tmp_path, killed.output / "fusion", 2)
    run_training(replace(killed, resume=True), tmp_path)
    expected, found = (saved(config.output / "last.ckpt")["state_dict"] for config in (whole, killed))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_the_command_trains_with_the_recipe(camp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "SPLITS", {"train": 48, "dev": 8})
    monkeypatch.setattr(synthetic, "REGIONS", 6)
    synthetic.write_data(tmp_path / "data")
    options = "--recipe released --variant gate_fusion_new --attention-epochs 1 --fusion-epochs 1 --epochs 1"
    sizes = "--width 8 --word-width 8 --batch-size 24,12,12 --min-count 1 --devices 1"
    run = tmp_path / "run"
    done = camp("train", "--data", tmp_path / "data", "--output", run, *options.split(), *sizes.split())
    assert done.code == 0, done.err
    model, origin = load_checkpoint(run / "best.ckpt")
    assert not model.config.global_vectors
    expected = {name: value for name, value in RECIPE.items() if name != "recipe"}
    assert {name: origin.training[name] for name in expected} == expected
    assert (origin.training["batch_size"], origin.training["learning_rate"]) == (12, 1e-2)  # of its stage
    record = json.loads((run / "run.json").read_text())["options"]
    assert (record["batch_size"], record["optimiser"]) == ("24,12,12", "adam,sgd,sgd")
    steps = [saved(run / stage / "last.ckpt")["global_step"] for stage in ("attention", "fusion", ".")]
    assert steps == [2, 4, 4]  # 48 images, not 240 captions
