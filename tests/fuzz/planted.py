"""Targets that do harm on purpose: a campaign that does not see them sees nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

HARMS = ("hang", "crash", "memory", "exception", "long", "exec", "write", "shell", "socket", "canary", "nan", "none")


def harmful(harm: str, bases: Path, folder: Path, way: int) -> dict[str, Any]:
    """Do harm if the file is not the whole one.

    Args:
        harm: which, one of `HARMS`.
        bases: the folder of the whole files.
        folder: the mutant's folder.
        way: not used.
    """
    (path,) = folder.iterdir()
    if path.read_bytes() == (bases / "selftest.json").read_bytes() or harm == "none":
        return {"number": 1.0}
    if harm == "hang":
        time.sleep(3600)
    elif harm == "crash":
        os.kill(os.getpid(), 11)
    elif harm == "memory":
        taken = np.ones(1 << 28)  # two gigabytes
        return {"number": taken[:1]}
    elif harm == "exception":
        raise ValueError("not an error of the project")
    elif harm == "long":
        from camp_sdk import BundleError

        raise BundleError("a line\n" * 1000)
    elif harm == "nan":
        return {"number": np.array([np.nan])}
    else:
        _act(harm, bases)
    return {"number": 1.0}


def _act(harm: str, bases: Path) -> None:
    if harm == "exec":
        exec("pass")
    elif harm == "write":
        (bases.parent / "outside").write_text("x")
    elif harm == "shell":
        subprocess.run(["true"], check=True)
    elif harm == "socket":
        socket.socket().close()
    elif harm == "canary":
        from tests.fuzz.containers import CANARY

        Path(CANARY).touch()
