"""The README's commands and names exist: what it shows is what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import camp_sdk

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[str]:
    lines = [line for kind, block in BLOCKS if kind == "" for line in block.splitlines()]
    return [line for line in lines if line.startswith(program)]


def test_the_first_block_is_the_whole_product() -> None:
    kind, block = BLOCKS[0]
    assert kind == "python"
    assert 'Retriever("bundle/")' in block
    assert "retriever.rank(" in block


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


@pytest.mark.parametrize("line", commands("python export/") + commands("camp "))
def test_commands_and_their_options_exist(line: str) -> None:
    words = shlex.split(line)
    if words[0] == "python":
        program, options = [sys.executable, str(ROOT / words[1])], words[2:]
    else:
        program, options = [sys.executable, "-m", "camp_sdk.cli", words[1]], words[2:]
    shown = subprocess.run(
        [*program, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
    ).stdout
    for option in (word for word in options if word.startswith("--")):
        assert option in shown


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file()
