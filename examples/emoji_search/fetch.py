"""Fetch the five packages of emoji artwork and words, at pinned versions, with npm.

    python -m examples.emoji_search.fetch --output build/emoji/packages

The tarballs take 160 MB. Each is checked against its SHA-256, and a correct tarball that is already present is not
fetched again. Nothing in them is run or unpacked. NOTICE.md describes the packages and their licences.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import progress, run_command
from examples.emoji_search.packages import PACKAGES, Package, check_sum

TIMEOUT_S = 900


def fetch(folder: Path) -> None:
    """Fetch every package's tarball into a folder, unless the pinned one is already there.

    Args:
        folder: folder for the tarballs.

    Raises:
        BackendError: npm is not installed, or it fails.
        BundleError: a fetched tarball is not the pinned one; it is not kept.
    """
    missing = [package for package in PACKAGES.values() if not _is_there(folder, package)]
    npm = shutil.which("npm")
    if missing and npm is None:
        raise BackendError("npm is not installed; it fetches the packages: install Node.js, https://nodejs.org")
    for package in progress(missing, "fetching packages"):
        with write_aside(folder / package.file_name) as aside:
            _pack(str(npm), package, aside)
            check_sum(aside, package)


def _is_there(folder: Path, package: Package) -> bool:
    tarball = folder / package.file_name
    try:
        check_sum(tarball, package)
    except FileNotFoundError:
        return False
    except BundleError:  # a partial download, or another version
        tarball.unlink()
        return False
    return True


def _pack(npm: str, package: Package, target: Path) -> None:
    specification = f"{package.name}@{package.version}"
    command = [npm, "pack", specification, "--loglevel=error", "--pack-destination", str(target.parent)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise BackendError(f"npm pack {specification} took more than {TIMEOUT_S} seconds: try again") from None
    if done.returncode or not target.is_file():
        reason = " ".join((done.stderr or done.stdout).replace("npm error", "").split())[:400]
        raise BackendError(f"npm pack {specification} failed: {reason or 'it made no ' + target.name}")


def main(
    output: Annotated[Path, typer.Option(help="Folder for the tarballs.")] = Path("build/emoji/packages"),
) -> None:
    """Fetch the packages of emoji artwork and words."""
    fetch(output)


if __name__ == "__main__":
    run_command(main)
