"""Mutants: damaged files in the folders where they belong. Without a random generator, each writes whole files.

Every writer takes the path of a base, the generator (or None) and an empty folder to write into.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.bases import BUNDLES, write_run
from tests.fuzz.mutations import mutated_json

Mutation = Callable[[bytes, Random, bytes], bytes]
Writer = Callable[[Path, Random | None, Path], None]
MANIFEST = "manifest.json"


def one_file(mutation: Mutation, name: str = "") -> Writer:
    """A single file, under the base's own name unless another is given."""

    def write(base: Path, rng: Random | None, folder: Path) -> None:
        content = base.read_bytes()
        path = folder / (name or base.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutation(content, rng, _beside(base, rng)) if rng else content)

    return write


def _beside(base: Path, rng: Random) -> bytes:
    """The content of another file of the same kind."""
    return rng.choice(sorted(base.parent.glob(f"*{base.suffix}"))).read_bytes()


def in_folder(mutation: Mutation, pattern: str, is_bundle: bool = False) -> Writer:
    """A folder in which one of the files that fit a pattern is damaged; a bundle's manifest then lists the new one."""

    def write(base: Path, rng: Random | None, folder: Path) -> None:
        _linked(base, folder)
        if rng:
            chosen = rng.choice(sorted(folder.glob(pattern)))
            _damage(chosen, mutation, rng)
            if is_bundle and chosen.name != MANIFEST:
                relist(folder)

    return write


def _linked(source: Path, folder: Path) -> None:
    """A copy of a folder that takes no time: the files are links, to be replaced and never written into."""
    shutil.copytree(source, folder, copy_function=os.link, dirs_exist_ok=True)


def _damage(path: Path, mutation: Mutation, rng: Random) -> None:
    content, other = path.read_bytes(), _beside(path, rng)
    path.unlink()
    path.write_bytes(mutation(content, rng, other))


def relist(folder: Path) -> None:
    """Give a manifest the sizes and hashes of the files as they are now."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for name in manifest["files"]:
        if (folder / name).is_file():
            content = (folder / name).read_bytes()
            manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.unlink()
    path.write_text(json.dumps(manifest), encoding="utf-8")


def bundle_folder(base: Path, rng: Random | None, folder: Path) -> None:
    """A bundle whose files are missing, swapped, links, folders, pipes, of another bundle, or too many."""
    _linked(base, folder)
    if not rng:
        return
    for _ in range(rng.choice((1, 1, 2))):
        files = sorted(path for path in folder.iterdir() if path.is_file())
        rng.choice(FOLDER_CHANGES)(rng.choice(files), rng.choice(files), rng, base.parent)
    if rng.random() < 0.7 and _is_manifest(folder / MANIFEST):
        relist(folder)


def _is_manifest(path: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and "files" in json.loads(path.read_bytes())
    except ValueError:
        return False


def _missing(path: Path, _other: Path, _rng: Random, _bases: Path) -> None:
    path.unlink()


def _swapped(path: Path, other: Path, _rng: Random, _bases: Path) -> None:
    content = path.read_bytes(), other.read_bytes()
    for one, own in zip((other, path), content, strict=True):
        one.unlink(missing_ok=True)
        one.write_bytes(own)


def _linked_out(path: Path, other: Path, rng: Random, bases: Path) -> None:
    path.unlink()
    path.symlink_to(
        rng.choice(("/etc/hostname", "/dev/zero", path.name, other.name, str(bases / "features" / path.name), ".."))
    )


def _strange(path: Path, _other: Path, rng: Random, _bases: Path) -> None:
    path.unlink()
    if rng.random() < 0.5:
        path.mkdir()
    else:
        os.mkfifo(path)


def _foreign(path: Path, _other: Path, rng: Random, bases: Path) -> None:
    source = bases / rng.choice(list(BUNDLES)) / path.name
    if source.is_file():
        content = source.read_bytes()
        path.unlink()
        path.write_bytes(content)


def _empty(path: Path, _other: Path, _rng: Random, _bases: Path) -> None:
    path.unlink()
    path.touch()


def _extra(path: Path, _other: Path, rng: Random, _bases: Path) -> None:
    names = ("extra.bin", ".hidden", "a\nb", "\udcff", "image.onnx.data", "engines", "sitecustomize.py", "x" * 255)
    more = path.parent / rng.choice(names)
    if not more.exists():
        more.write_bytes(b"open('canary', 'w')\n")


FOLDER_CHANGES: tuple[Callable[[Path, Path, Random, Path], None], ...] = (
    _missing,
    _swapped,
    _linked_out,
    _strange,
    _foreign,
    _empty,
    _extra,
)


def engine_record(base: Path, rng: Random | None, folder: Path) -> None:
    """A bundle with engines, one of which has a damaged record, and at times the name that the record asks for."""
    _linked(base, folder)
    if not rng:
        return
    record = rng.choice(sorted(folder.glob("engines/*/engine.json")))
    _damage(record, mutated_json, rng)
    if rng.random() < 0.5:
        from camp_sdk.runtime.errors import BundleError
        from camp_sdk.runtime.tensorrt.plans import read_record

        try:
            read_record(record.parent)
        except BundleError as error:
            asked = str(error).rpartition("named ")[2]
            if asked.isalnum() and len(asked) == 16:
                record.parent.rename(record.parent.parent / asked)


def checkpoint_words(base: Path, rng: Random | None, folder: Path) -> None:
    """A checkpoint whose tokenizer, a text inside of it, is damaged."""
    import torch

    loaded: Any = torch.load(base, weights_only=True)
    if rng:
        text = mutated_json(loaded["camp"]["tokenizer"].encode(), rng)
        loaded["camp"]["tokenizer"] = text.decode("utf-8", rng.choice(("replace", "surrogateescape")))
    content = io.BytesIO()
    torch.save(loaded, content)
    (folder / "best.ckpt").write_bytes(content.getvalue())


def run_record(base: Path, rng: Random | None, folder: Path) -> None:
    """The folder of a training run, whose record is damaged."""
    if not base.is_dir():
        write_run(base.parent)
    in_folder(mutated_json, "run.json")(base, rng, folder)
