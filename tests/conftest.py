"""Fixtures shared by all tests. Exporting is slow, so each bundle is made once per session and must not be changed."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from camp_sdk import Retriever, ranking
from camp_sdk.export.bundling.writer import export_bundle, write_lowered
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.export.scenes import write_scenes
from camp_sdk.first_pass import best_in_two_passes
from camp_sdk.runtime.lowered import LoweredGraphs
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest
from tests.helpers.command import Camp
from tests.helpers.hardware import lower_precisions
from tests.helpers.tiny import FEATURE_WIDTH, save_tiny_checkpoint

RELEASED = Path(__file__).parent / "released"  # recorded checkpoints


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder, of each test its own: results of self-tests are remembered there."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def camp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Camp:
    """The `camp` command in this process."""
    return Camp(monkeypatch, capsys)


@pytest.fixture
def young_garbage() -> Iterator[None]:
    """Let `gc.collect` visit only what the test made: visiting all that torch and earlier tests keep takes a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads make networks this small slower, ten times so on a busy machine, and sums in them come in any order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    folder = tmp_path_factory.mktemp("checkpoints")

    def checkpoint(variant: str, pictures: bool) -> Path:
        path = folder / f"{variant}-{pictures}.ckpt"
        return path if path.is_file() else save_tiny_checkpoint(path, variant, pictures)

    return checkpoint


@pytest.fixture(scope="session")
def feature_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str, bool], Path]) -> Path:
    """A bundle of the paper's variant that takes features [R, 12]. Read only: copy it (`bundle_copy`) to break it."""
    return export_bundle(
        checkpoints("paper", False), tmp_path_factory.mktemp("bundles") / "features", lower_precisions()
    ).folder


@pytest.fixture(scope="session")
def float8_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str, bool], Path]) -> Path:
    """A bundle as `feature_bundle`, whose one lower precision is float8. Read only."""
    folder = tmp_path_factory.mktemp("bundles") / "float8"
    return export_bundle(checkpoints("paper", False), folder, ["float8"]).folder


@pytest.fixture(scope="session")
def picture_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoints: Callable[[str, bool], Path]) -> Path:
    """A bundle of the scalar variant that takes pictures. Read only."""
    return export_bundle(checkpoints("scalar", True), tmp_path_factory.mktemp("bundles") / "pictures").folder


@pytest.fixture(scope="session")
def released_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of each recorded checkpoint of the released code, by variant. Read only."""
    folder = tmp_path_factory.mktemp("released")

    def bundle(variant: str) -> Path:
        target = folder / f"bundle-{variant}"
        if not target.exists():
            run = folder / f"run-{variant}"
            export_bundle(import_checkpoint(RELEASED / f"{variant}.pth.tar", RELEASED / "vocab.pkl", run), target)
        return target

    return bundle


@pytest.fixture(scope="session")
def half_bundle(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, released_bundle: Callable[[str], Path]
) -> Callable[[str], Path]:
    """A bundle of each variant with its float16 graphs, whose scores nobody checks here: these networks are random."""
    folder, ours = tmp_path_factory.mktemp("halves"), {"paper": "feature_bundle", "scalar": "picture_bundle"}

    def bundle(variant: str) -> Path:
        target = folder / variant
        if not target.exists():
            made = request.getfixturevalue(ours[variant]) if variant in ours else released_bundle(variant)
            shutil.copytree(made, target, ignore=shutil.ignore_patterns("fp16", "bf16", "int8"))
            manifest = read_manifest(target / MANIFEST_FILE)
            lowered = LoweredGraphs(write_lowered("float16", manifest.graphs, target))
            write_manifest(target, replace(manifest, precisions={"float16": lowered}))
        return target

    return bundle


@pytest.fixture
def bundle_copy(feature_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of its own, for tests that break it."""
    return Path(shutil.copytree(feature_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def feature_retriever(feature_bundle: Path) -> Iterator[Retriever]:
    with Retriever(feature_bundle, "onnxruntime") as retriever:
        yield retriever


@pytest.fixture(scope="session")
def picture_retriever(picture_bundle: Path) -> Iterator[Retriever]:
    with Retriever(picture_bundle, "onnxruntime") as retriever:
        yield retriever


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of drawn scenes. Read only."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, {"train": 24, "dev": 6, "test": 8}, seed=3)
    return folder


@pytest.fixture
def features() -> NDArray[np.float32]:
    """Features of ten images with five regions each: [10, 5, 12]."""
    return np.random.default_rng(0).standard_normal((10, 5, FEATURE_WIDTH), dtype=np.float32)


@pytest.fixture(scope="session")
def many() -> NDArray[np.float32]:
    """Features of enough images that a second pass leaves most of them out."""
    return np.random.default_rng(3).standard_normal((150, 5, 12), dtype=np.float32)


@pytest.fixture
def two_passes(monkeypatch: pytest.MonkeyPatch) -> list[NDArray[np.float32]]:
    """The coarse logits of every ranking in two passes from now on."""
    noted: list[NDArray[np.float32]] = []

    def note(coarse: NDArray[np.float32], *rest: Any) -> Any:
        noted.append(coarse)
        return best_in_two_passes(coarse, *rest)

    monkeypatch.setattr(ranking, "best_in_two_passes", note)
    return noted
