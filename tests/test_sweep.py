"""Runs that keep what is done: nothing finished is repeated, and whatever was stopped goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from camp_sdk.export.network import sentences
from camp_sdk.export.training.config import TrainConfig
from examples._shared import sweep
from examples._shared.sweep import finish_run, kept_json, measured_run, runnable


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(tmp_path / "data", tmp_path / "run")


@pytest.fixture
def steps(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, by a training and an export that only leave their files."""
    done = []

    def train(given: TrainConfig) -> None:
        if given.resume and (given.output / "finished").is_file():
            done.append("checked")
            return
        left = sorted(path.name for path in given.output.glob("*"))
        done.append("resumed" if given.resume else f"trained in {left}")
        given.output.mkdir(exist_ok=True)
        for name in ("best.ckpt", "last.ckpt", "finished"):
            (given.output / name).touch()

    def export_bundle(checkpoint: Path, output: Path) -> None:
        assert checkpoint == config.output / "best.ckpt"
        done.append("exported")
        output.mkdir()

    monkeypatch.setattr(sweep, "run_training", train)
    monkeypatch.setattr(sweep, "export_bundle", export_bundle)
    return done


def minutes_of(config: TrainConfig) -> object:
    return json.loads((config.output / "minutes.json").read_text())


def test_a_new_run_is_trained_and_exported_once(config: TrainConfig, steps: list[str]) -> None:
    assert finish_run(config) == finish_run(config) == config.output / "bundle"
    assert steps == ["trained in []", "exported", "checked"]
    assert minutes_of(config) == 0.0


def test_a_stopped_run_goes_on_and_does_not_know_its_time(config: TrainConfig, steps: list[str]) -> None:
    config.output.mkdir()
    (config.output / "last.ckpt").touch()
    finish_run(config)
    finish_run(config)
    assert steps == ["resumed", "exported", "checked"]
    assert minutes_of(config) is None


def test_a_run_whose_folder_is_there_goes_on(config: TrainConfig, steps: list[str]) -> None:
    """Training itself begins anew what was stopped in its first epoch, and refuses a folder with other files."""
    config.output.mkdir()
    finish_run(config)
    assert steps == ["resumed", "exported"]
    assert minutes_of(config) is not None  # nothing was done before


def test_a_run_stopped_before_its_export_is_exported(config: TrainConfig, steps: list[str]) -> None:
    finish_run(config).rmdir()
    finish_run(config)
    assert steps == ["trained in []", "exported", "checked", "exported"]


def test_a_model_is_measured_once(config: TrainConfig, steps: list[str]) -> None:
    asked = []

    def measure(bundle: Path) -> dict[str, object]:
        asked.append(bundle)
        return {"recall": 50.0, "name": "\u00e9"}

    first = measured_run(config, measure)
    assert measured_run(config, measure) == first
    assert first == {"variant": "paper", "words": "learned", "training_minutes": 0.0, "recall": 50.0, "name": "\u00e9"}
    assert asked == [config.output / "bundle"]


def test_what_cannot_be_made_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        kept_json(tmp_path / "x.json", lambda: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_runs_whose_encoder_is_missing_are_left_out_with_one_line(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sentences.PACKAGES, "absent", "no-such-package")
    wanted = [replace(config, words="absent"), config, replace(config, words="absent", variant="scalar")]
    assert runnable(wanted) == [config]
    said = capsys.readouterr().err
    assert said == "skipping the models that need absent: pip install --no-deps no-such-package safetensors\n"
