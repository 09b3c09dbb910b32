"""The `camp` command in this process: its exit code and what it printed."""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest
from PIL import Image

from camp_sdk.commands.app import main


class Result(NamedTuple):
    """What a command left: its exit code, and what it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


class Camp:
    """Runs `camp` in this process, as the shell would call it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object, columns: int = 250) -> Result:
        self._monkeypatch.setenv("COLUMNS", str(columns))
        self._monkeypatch.setattr(sys, "argv", ["camp", *map(str, arguments)])
        self._monkeypatch.setattr(
            Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS
        )  # commands lift it, other tests do not
        with pytest.raises(SystemExit) as stopped:
            main()
        out, err = self._capsys.readouterr()
        return Result(int(stopped.value.code or 0), out, err)
