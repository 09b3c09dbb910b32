"""`camp train`, `camp export`, `camp import` and `camp scenes`: the scripts of export/, imported on demand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from camp_sdk import InputError
from camp_sdk.commands.app import COMMANDS, TRAINING_COMMANDS
from camp_sdk.export.bundling import writer
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.train import command as train_command
from camp_sdk.terminal import as_flags, run_command
from tests.helpers.command import Camp
from tests.helpers.processes import run_blocked

ROOT = Path(__file__).parents[1]


def run_camp_blocked(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`camp` in a process in which no training library can be found."""
    code = f"sys.argv = ['camp', *{list(arguments)!r}]\nfrom camp_sdk.commands.app import main\nmain()"
    return run_blocked(code)


def options_in(help_text: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]+", help_text))


def test_help_lists_every_command_without_torch() -> None:
    done = run_camp_blocked("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*COMMANDS, *TRAINING_COMMANDS):
        assert re.search(rf"^│ {name} ", done.stdout, re.MULTILINE), name


def test_the_commands_of_apps_import_nothing_of_export() -> None:
    code = "import camp_sdk.commands.app\nprint([name for name in sys.modules if name.startswith('camp_sdk.export')])"
    assert run_blocked(code).stdout == "[]\n"


@pytest.mark.parametrize(("name", "module"), TRAINING_COMMANDS.items())
def test_a_command_has_the_options_of_its_script(camp: Camp, name: str, module: str) -> None:
    script = [sys.executable, str(ROOT / "export" / f"{module}.py"), "--help"]
    done = subprocess.run(script, env={"COLUMNS": "250"}, capture_output=True, text=True, check=True)
    result = camp(name, "--help")
    assert result.code == 0
    assert options_in(result.out) == options_in(done.stdout)
    assert len(options_in(result.out)) > 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--data", "data", "--output", "run"),
        ("export", "--checkpoint", "best.ckpt", "--output", "bundle"),
        ("import", "released.pth.tar", "--vocab", "vocab.pkl", "--output", "run"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_without_its_extra_a_command_says_so_in_a_line(arguments: tuple[str, ...]) -> None:
    done = run_camp_blocked(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: (torch|lightning|onnx) is not installed; install it with: .*\[train\].*\n", done.stderr
    )


def test_scenes_need_no_extra(tmp_path: Path) -> None:
    done = run_camp_blocked("scenes", "--output", str(tmp_path / "data"), "--train", "2", "--dev", "2", "--test", "2")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "data/train/metadata.jsonl").read_text().splitlines()) == 2


def test_from_scenes_to_a_checkpoint_by_camp_alone(camp: Camp, tmp_path: Path) -> None:
    data, run = (str(tmp_path / name) for name in ("data", "run"))
    assert camp("scenes", "--output", data, "--train", "24", "--dev", "6", "--test", "6").code == 0
    small = ["--width", "16", "--word-width", "8", "--min-count", "1", "--batch-size", "8", "--epochs", "1"]
    trained = camp("train", "--data", data, "--output", run, *small)
    assert trained.code == 0, trained.err
    assert load_checkpoint(Path(run) / "best.ckpt")[1].model.width == 16


def test_export_passes_its_options_on(camp: Camp, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(writer, "export_bundle", lambda *arguments: called.append(arguments))
    mine = ("--network", "my_package:MyNetwork")
    result = camp("export", "--checkpoint", "best.ckpt", "--output", "bundle", "--precision", "fp16", *mine)
    assert (result.code, result.err) == (0, "wrote bundle\n")
    assert called == [(Path("best.ckpt"), Path("bundle"), ["float16"], "my_package:MyNetwork")]


# Parameters become flags


def test_parameters_become_flags() -> None:
    assert as_flags("`batch_size` 1: give `fit` or <unk>") == "--batch-size 1: give --fit or <unk>"
    assert as_flags("`<unk>` and `Gallery.save` stay") == "`<unk>` and `Gallery.save` stay"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "1"], "error: --batch-size 1: negatives come from the batch, expected 2 or more\n"),
        (["--fusion-epochs", "1"], "give --attention-epochs, or --start with a checkpoint\n"),
    ],
)
def test_the_command_line_names_flags(
    scenes: Path, camp: Camp, tmp_path: Path, options: list[str], message: str
) -> None:
    result = camp("train", "--data", scenes, "--output", tmp_path / "run", *options)
    assert (result.code, result.out) == (1, "")
    assert result.err.endswith(message)


def test_only_what_the_caller_passed_is_translated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise OSError("`batch_size` is a file")

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit):
        run_command(fails)
    assert "`batch_size` is a file" in capsys.readouterr().err


def test_training_in_python_names_parameters(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^`batch_size` 1: negatives"):
        train_command(data=scenes, output=tmp_path / "run", batch_size=1)
