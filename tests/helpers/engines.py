"""Engines that nobody built: plans of the fake TensorRT, and engines on disk with their records."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from camp_sdk import BackendError, Bundle
from camp_sdk.runtime import backends
from camp_sdk.runtime.engines.profiles import Profile
from camp_sdk.runtime.tensorrt.plans import Here, PlanRecord
from tests.helpers.fake_cuda import write_plan
from tests.helpers.profiles import profile_between

LARGEST = {"I": 4, "T": 4, "N": 64, "R": 8, "B": 4}
PlanHere = Callable[[Bundle, str, str, str], tuple[Path, PlanRecord]]
ORIN = Here("tensorrt", "10.3.0", "8.7", "CUDA 12.6")
PROFILE: Profile = {"features": ((1, 1, 12), (128, 36, 12), (128, 100, 12))}
PLAN = b"a plan"


def plans_in(folder: Path, *built: str) -> PlanHere:
    """Plans of the fake TensorRT, of the graphs that were built."""

    def plan_here(bundle: Bundle, graph: str, precision: str, library: str) -> tuple[Path, PlanRecord]:
        if graph not in built or library != "tensorrt":
            raise BackendError(f"no {library} engine was built for {graph}")
        spec = bundle.manifest.graphs_in(precision)[graph]
        profile = profile_between(spec, {}, LARGEST)
        plan = write_plan(folder / f"{precision}-{graph}.plan", bundle.file(spec.file), profile)
        return plan, SimpleNamespace(profile=profile)  # type: ignore[return-value]  # enough to run

    return plan_here


def install_plans(monkeypatch: pytest.MonkeyPatch, folder: Path, *built: str, by_others: bool = False) -> None:
    """Let bundles have plans of the fake TensorRT, of the graphs that were built."""
    monkeypatch.setattr(backends, "plan_here", plans_in(folder, *built))
    monkeypatch.setattr(backends, "read_records", lambda bundle: ([(bundle, SimpleNamespace(library="tensorrt"))], []))
    monkeypatch.setattr(backends, "was_built", lambda bundle, graph, precision, backend: graph in built)
    monkeypatch.setattr(backends, "was_built_here", lambda record: not by_others)


def write_engine(bundle: Bundle, here: Here = ORIN, **changes: Any) -> Path:
    """An engine of the image graph as it would have been built, without a library; returns its folder."""
    record = PlanRecord(
        library=here.library,
        library_version=here.version,
        compute_capability=here.target,
        driver=here.driver,
        graph="image",
        precision="float32",
        graph_sha256=bundle.manifest.files["image.onnx"].sha256,
        profile=PROFILE,
        plan_sha256=hashlib.sha256(PLAN).hexdigest(),
        plan_bytes=len(PLAN),
        low_share=0.0,
        build_s=1.5,
        built_at=1.0,
    )
    record = replace(record, **changes)
    folder = bundle.folder / "engines" / record.key
    folder.mkdir(parents=True)
    (folder / "engine.plan").write_bytes(PLAN)
    (folder / "engine.json").write_text(record.as_json())
    return folder
