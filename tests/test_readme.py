"""The commands and names of README and docs exist: what they show is what there is."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import scale
from images.make_architecture import FILE, architecture
from images.make_ranking import QUERY

import camp_sdk
from camp_sdk.export.training.config import TrainConfig
from examples.demo import FREE_QUERY

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
DOCS = sorted((ROOT / "docs").glob("*.md"))


def commands() -> list[str]:
    """Of README's plain blocks and the docs' indented ones, each in one line."""
    plain = "".join(block for kind, block in BLOCKS if kind == "")
    indented = [line for path in DOCS for line in re.findall(r"^    (.*)", path.read_text("utf-8"), re.MULTILINE)]
    text = "\n".join([plain, *indented]).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith(("python export/", "camp "))]


@functools.cache
def help_of(program: tuple[str, ...]) -> str:
    environment = {"COLUMNS": "200"}
    return subprocess.run([*program, "--help"], capture_output=True, text=True, check=True, env=environment).stdout


FIRST_LINES = next(block for kind, block in BLOCKS if kind == "python")


def test_the_first_lines_run_as_they_stand(
    picture_bundle: Path,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a small bundle and a few pictures, where `make demo` leaves its own."""
    assert len(FIRST_LINES.splitlines()) <= 10
    shutil.copytree(picture_bundle, tmp_path / "build/demo/bundle")
    shutil.copytree(scenes, tmp_path / "build/demo/data")
    monkeypatch.chdir(tmp_path)
    exec(compile(FIRST_LINES, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["1", "2", "3", "4", "5"]


def test_the_first_lines_use_what_make_demo_leaves() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "examples.demo --output build/demo" in makefile
    assert FREE_QUERY in FIRST_LINES
    assert QUERY == FREE_QUERY  # of the picture beside it


def test_the_start_page_begins_with_the_same_lines() -> None:
    assert FIRST_LINES in (ROOT / "docs/index.md").read_text(encoding="utf-8")


def test_the_tables_of_the_readme_stay_short() -> None:
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", README, flags=re.DOTALL | re.MULTILINE))
    rows = {name: len(re.findall(r"^\|", text, flags=re.MULTILINE)) - 2 for name, text in sections.items()}
    assert 1 <= rows["Speed"] <= 5
    assert 1 <= rows["Quality"] <= 3


def test_the_site_has_every_page() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    nav = re.findall(r"^ +- .*: (\S+\.md)$", site, flags=re.MULTILINE)
    assert sorted(nav) == [page.name for page in DOCS]


def test_the_api_reference_has_every_public_name() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^::: camp_sdk\.(\w+)$", page, flags=re.MULTILINE)) == sorted(camp_sdk.__all__)


def test_the_training_page_has_every_option() -> None:
    page = (ROOT / "docs/train.md").read_text(encoding="utf-8")
    for field in fields(TrainConfig):
        assert f"--{field.name.replace('_', '-')}" in page


def test_the_architecture_is_as_its_script_draws_it() -> None:
    assert FILE.read_text(encoding="utf-8") == architecture()


def test_the_plans_are_as_their_script_computes_them() -> None:
    assert scale.PAGE.read_text(encoding="utf-8") == scale.page()


def test_python_blocks_parse_and_use_real_methods() -> None:
    for kind, block in BLOCKS:
        if kind == "python":
            compile(block, "README.md", "exec")
            for method in re.findall(r"\bretriever\.(\w+)\(", block):
                assert hasattr(camp_sdk.Retriever, method)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "python":
        program, options = (sys.executable, str(ROOT / words[1])), words[2:]
    else:
        depth = 3 if words[1] in ("data", "index") or words[1:3] == ["import", "clip"] else 2  # `camp data coco`
        program, options = (sys.executable, "-m", "camp_sdk.commands.app", *words[1:depth]), words[depth:]
    shown = help_of(program)
    for option in (word for word in options if word.startswith("--")):
        assert option in shown


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda page: page.name)
def test_every_linked_file_exists(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file()
