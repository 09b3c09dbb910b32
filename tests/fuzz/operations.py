"""The writers that are killed, and what tells whether their output is whole: the old one, the new one, or none.

Each step runs in a process of its own, in a folder that `before` has filled.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.bases import some_features

ABSENT, OLD, NEW = "absent", "old", "new"
OUTPUT = "output"


@dataclass(frozen=True)
class Operation:
    """A writer.

    Args:
        name: its name.
        share: of the kills; one that takes long has a small one.
        before: makes the state before it, in a folder.
        run: writes ``folder / OUTPUT``.
        state: ABSENT, OLD or NEW; raises for an output that is torn.
        once: whether it refuses to replace a whole output, so that there is nothing to run again.
    """

    name: str
    share: int
    before: Callable[[Path, Path], None]
    run: Callable[[Path, Path], None]
    state: Callable[[Path, Path], str]
    once: bool = False


def camp(*arguments: object) -> None:
    """The `camp` command in this process."""
    from camp_sdk.commands.app import main

    sys.argv = ["camp", *map(str, arguments)]
    try:
        main()
    except SystemExit as stopped:
        if stopped.code:
            raise RuntimeError(f"camp {arguments[0]} failed: {stopped.code}") from None


def _nothing(bases: Path, folder: Path) -> None:
    """There is no older output."""


def _retriever(bases: Path) -> Any:
    from camp_sdk import Retriever

    return Retriever(bases / "features", "onnxruntime", threads=1)


# A gallery: the old one has two images, the new one six.


def _save(bases: Path, folder: Path, images: int) -> None:
    with _retriever(bases) as retriever:
        retriever.encode_images(some_features(images)).save(folder / OUTPUT)


def _gallery_state(bases: Path, folder: Path) -> str:
    if not (folder / OUTPUT).exists():
        return ABSENT
    with _retriever(bases) as retriever:
        opened = retriever.open_gallery(folder / OUTPUT)
        right = retriever.score_matrix(some_features(len(opened)), ["a red circle"])
        np.testing.assert_allclose(retriever.score_matrix(opened, ["a red circle"]), right, 1e-5, 1e-6)
        return {2: OLD, 6: NEW}[len(opened)]


def _encode(bases: Path, folder: Path) -> None:
    arguments = ("--images", bases / "data" / "dev_ims.npy", "--output", folder / OUTPUT, "--backend", "onnxruntime")
    camp("encode", bases / "features", *arguments)


# A bundle: the old one is that of pictures.


def _old_bundle(bases: Path, folder: Path) -> None:
    shutil.copytree(bases / "pictures", folder / OUTPUT)


def _export(bases: Path, folder: Path) -> None:
    camp("export", "--checkpoint", bases / "features.ckpt", "--output", folder / OUTPUT)


def _bundle_state(bases: Path, folder: Path) -> str:
    from camp_sdk import Bundle, Retriever

    if not (folder / OUTPUT).exists():
        return ABSENT
    if Bundle(folder / OUTPUT).manifest.pixels:
        return OLD
    with Retriever(folder / OUTPUT, "onnxruntime", threads=1) as retriever, _retriever(bases) as whole:
        found, right = (each.score_matrix(some_features(), ["a red circle"]) for each in (retriever, whole))
        np.testing.assert_allclose(found, right, 1e-4, 1e-5)
    return NEW


# A checkpoint


def _import(bases: Path, folder: Path) -> None:
    released = bases / "released"
    camp("import", released / "gate_fusion_new.pth.tar", "--vocab", released / "vocab.pkl", "--output", folder / OUTPUT)


def _checkpoint_state(bases: Path, folder: Path) -> str:
    from camp_sdk.export.network.checkpoint import load_checkpoint

    path = folder / OUTPUT / "best.ckpt"
    if not path.exists():
        return ABSENT
    assert load_checkpoint(path)[1].model.variant == "gate_fusion_new"
    return NEW


# A data set


def _import_data(bases: Path, folder: Path) -> None:
    source = bases / "sources" / "csv"
    columns = ("--file-column", "image", "--caption-column", "caption")
    camp("data", "csv", source / "t.csv", "--images", source / "pictures", *columns, "--output", folder / OUTPUT)


def _data_state(bases: Path, folder: Path) -> str:
    from camp_sdk import load_split

    if not (folder / OUTPUT).exists():
        return ABSENT
    split = load_split(folder / OUTPUT, "train")
    assert (len(split.images), len(split.captions)) == (3, 9)
    return NEW


# Engines in a bundle


def _bundle_to_build(bases: Path, folder: Path) -> None:
    shutil.copytree(bases / "features", folder / OUTPUT)


def _build(bases: Path, folder: Path) -> None:
    camp("build", folder / OUTPUT, "--backend", "tensorrt-rtx", "--precision", "float32", "--graph", "image", "--force")


def _engine_state(bases: Path, folder: Path) -> str:
    from camp_sdk.export.bundling.writer import check_output
    from camp_sdk.runtime.tensorrt.plans import check_plan, read_records

    check_output(folder / OUTPUT)  # what a killed build leaves must not keep an export from replacing the bundle
    records, broken = read_records(folder / OUTPUT)
    assert not broken, broken
    for place, record in records:
        check_plan(place, record)
    return NEW if records else ABSENT


# A training run of two epochs


def _train(bases: Path, folder: Path) -> None:
    from camp_sdk.export.training.config import TrainConfig
    from camp_sdk.export.training.run import run_training

    sizes: dict[str, Any] = {"width": 8, "word_width": 8, "epochs": 2, "batch_size": 4, "devices": "1", "min_count": 1}
    run = folder / OUTPUT
    run_training(TrainConfig(bases / "data", run, resume=run.is_dir(), **sizes), folder)


def _run_state(bases: Path, folder: Path) -> str:
    from camp_sdk.export.network.checkpoint import load_checkpoint

    run = folder / OUTPUT
    if (run / "run.json").exists():
        json.loads((run / "run.json").read_text(encoding="utf-8"))
    epochs = []
    for name in ("best.ckpt", "last.ckpt"):
        if (run / name).exists():
            epochs.append(load_checkpoint(run / name)[1].training.get("epoch", 0))
    return NEW if len(epochs) == 2 else ABSENT


def _has_rtx() -> bool:
    return importlib.util.find_spec("tensorrt_rtx") is not None


OPERATIONS = (
    Operation("gallery save", 30, lambda b, f: _save(b, f, 2), lambda b, f: _save(b, f, 6), _gallery_state),
    Operation("camp encode", 25, lambda b, f: _save(b, f, 2), _encode, _gallery_state),
    Operation("camp import", 25, _nothing, _import, _checkpoint_state, once=True),
    Operation("camp data", 15, _nothing, _import_data, _data_state, once=True),
    Operation("camp export", 6, _old_bundle, _export, _bundle_state),
    *([Operation("camp build", 7, _bundle_to_build, _build, _engine_state)] if _has_rtx() else []),
    Operation("training", 7, _nothing, _train, _run_state),
)
