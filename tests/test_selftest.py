"""The golden self-test: what it finds, when it runs, what is remembered, and that a hostile golden.npz is refused."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from camp_sdk import BackendError, Bundle, BundleError, Retriever
from camp_sdk.export.bundling import parity, precision_gate
from camp_sdk.runtime import backends, golden, selftest
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.golden import read_golden
from camp_sdk.runtime.selftest import SelfTest, choose_tested_backend, recall, remember, self_test
from tests.helpers.engines import LARGEST, install_plans
from tests.helpers.fake_cuda import FakeCuda, FakeTensorRt, install
from tests.helpers.golden import GRAPHS, listed_again, spoil, with_golden
from tests.helpers.hardware import needs_bfloat16

# What it finds


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_it_passes_on_the_processor(feature_bundle: Path, picture_bundle: Path, backend: str) -> None:
    for folder in (feature_bundle, picture_bundle):
        test = self_test(Bundle(folder), backend, "float32")
        assert test.passed
        assert not test.skipped
        assert 0 < test.max_logit_error < 1e-4


def test_it_passes_in_half_precision_with_larger_differences(feature_bundle: Path) -> None:
    test = self_test(Bundle(feature_bundle), "onnxruntime", "float16")
    assert test.passed
    assert 1e-6 < test.max_score_error < selftest.MAX_SCORE_ERROR


@needs_bfloat16
def test_it_passes_in_bfloat16(feature_bundle: Path) -> None:
    assert self_test(Bundle(feature_bundle), "openvino", "bfloat16").passed


@pytest.mark.parametrize("variant", ["gate_fusion", "cross_attention"])
def test_it_passes_for_released_checkpoints(released_bundle: Callable[[str], Path], variant: str) -> None:
    assert self_test(Bundle(released_bundle(variant)), "onnxruntime", "float32").passed


def test_the_limits_are_those_of_the_export() -> None:
    assert (selftest.MAX_LOGIT_ERROR, selftest.MAX_SCORE_ERROR) == (parity.MAX_ERROR, precision_gate.MAX_SCORE_ERROR)


@pytest.mark.parametrize(
    ("backend", "precision", "passed"),
    [
        ("tensorrt", "float32", False),
        ("onnxruntime-cuda", "float32", False),
        ("onnxruntime-tensorrt", "float32", True),  # computes in TF32
        ("tensorrt", "float16", True),
    ],
)
def test_float32_is_held_to_its_logits_and_the_rest_to_scores(backend: str, precision: str, passed: bool) -> None:
    assert SelfTest(backend, precision, max_logit_error=0.01, max_score_error=0.002).passed is passed
    assert not SelfTest(backend, precision, 0.01, 0.006).passed


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 3e-4])
def test_a_wrong_logit_is_found(feature_bundle: Path, monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    spoil(monkeypatch, wrong)
    assert not self_test(Bundle(feature_bundle), "onnxruntime", "float32").passed


def test_an_infinity_in_half_precision_is_a_failure_not_an_error(
    feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, np.nan)
    test = self_test(Bundle(feature_bundle), "onnxruntime", "float16")
    assert not test.passed
    assert "scores differ by nan" in test.figures


def test_a_bundle_without_examples_is_not_tested(bundle_copy: Path) -> None:
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    del manifest["files"]["golden.npz"]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    test = self_test(Bundle(bundle_copy), "onnxruntime", "float32")
    assert (test.passed, test.skipped) == (True, "the bundle has no golden.npz")


# golden.npz


def test_what_was_exported_is_read(feature_bundle: Path, picture_bundle: Path) -> None:
    plain, pictures = (read_golden(Bundle(folder)) for folder in (feature_bundle, picture_bundle))
    assert plain.pixels is None
    assert pictures.pixels is not None
    assert pictures.pixels.shape[1:] == (3, 96, 96)
    for read in (plain, pictures):
        assert read.logits.shape == (len(read.features), len(read.tokens))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logits": None}, "KeyError"),
        ({"tokens": np.array([[{}]], dtype=object)}, r"tokens is no array of numbers: it holds data of type .*\|O"),
        ({"logits": np.zeros((2, 2), np.float32)}, "logits has the shape"),
        ({"logits": np.zeros((0, 0), np.float32)}, "logits has the shape"),
        ({"features": np.zeros((8, 5, 13), np.float32)}, "features has the shape"),
        ({"features": np.zeros(5, np.float32)}, "ValueError"),
        ({"lengths": np.full(6, 99)}, "lengths from 1 to"),
        ({"lengths": np.zeros(6, np.int64)}, "lengths from 1 to"),
        ({"tokens": np.full((6, 9), -1)}, "lengths from 1 to"),
        ({"tokens": np.zeros((65, 9), np.int64)}, "axis T has 65 entries"),
        ({"logits": np.zeros((8, 12))}, "logits is of type float64"),
    ],
)
def test_other_arrays_are_refused(bundle_copy: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleError, match=f"golden.npz is not what was exported .*{reason}"):
        read_golden(with_golden(bundle_copy, **changes))


def test_values_that_are_no_numbers_are_refused(bundle_copy: Path) -> None:
    with np.load(bundle_copy / "golden.npz") as file:
        logits = file["logits"]
    logits[1, 1] = np.nan
    with pytest.raises(BundleError, match="not finite numbers"):
        read_golden(with_golden(bundle_copy, logits=logits))


def test_an_array_that_claims_more_than_there_is_takes_no_memory(bundle_copy: Path) -> None:
    for shape, reason in (
        ((1 << 40, 1 << 10), "expected 1 to"),
        ((64, 1024), "the file holds 0"),
        ((-1, -5), "whole numbers"),
    ):
        with zipfile.ZipFile(bundle_copy / "golden.npz", "w") as archive, archive.open("tokens.npy", "w") as file:
            npy.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "<i8"})
        with pytest.raises(BundleError, match=f"not what was exported .*{reason}"):
            read_golden(listed_again(bundle_copy, "golden.npz"))


def test_a_packed_array_is_unpacked_no_further_than_its_limit(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "BYTES_LIMIT", 1 << 10)
    with np.load(bundle_copy / "golden.npz") as file:
        np.savez_compressed(bundle_copy / "golden.npz", **{**file, "tokens": np.zeros((64, 1024), np.int64)})
    with pytest.raises(BundleError, match="tokens has the shape"):
        read_golden(listed_again(bundle_copy, "golden.npz"))


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"no archive"])
def test_what_is_no_archive_is_refused(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / "golden.npz").write_bytes(content)
    with pytest.raises(BundleError, match=r"golden.npz is not what was exported"):
        read_golden(listed_again(bundle_copy, "golden.npz"))


# When it runs


class Gpu:
    """A machine with a fake GPU and TensorRT, with engines of all graphs, that counts the self-tests it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.runs = 0
        self.cuda, self.trt = install(monkeypatch)
        install_plans(monkeypatch, folder, *GRAPHS)
        monkeypatch.setattr(backends, "_cuda_works", lambda bundle: False)
        monkeypatch.setattr(selftest, "self_test", self._counted)

    def _counted(self, bundle: Bundle, backend: str, precision: str) -> SelfTest:
        self.runs += 1
        return self_test(bundle, backend, precision)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    return Gpu(monkeypatch, tmp_path)


def test_it_runs_once_on_a_machine_and_leaves_nothing_on_the_device(gpu: Gpu, feature_bundle: Path) -> None:
    for backend in ("tensorrt", "auto", "tensorrt"):
        with Retriever(feature_bundle, backend) as retriever:
            assert retriever.backend == "tensorrt"
    assert gpu.runs == 1
    assert gpu.cuda.held == 0


def test_processors_do_not_pay_for_it(gpu: Gpu, feature_bundle: Path) -> None:
    Retriever(feature_bundle, "onnxruntime")
    Retriever(feature_bundle, "openvino")
    assert gpu.runs == 0


@pytest.mark.parametrize("change", ["driver", "release", "version", "device", "bundle", "plan"])
def test_it_runs_again_when_something_changed(
    gpu: Gpu, bundle_copy: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    choose_tested_backend(Bundle(bundle_copy), "tensorrt")
    if change == "driver":
        monkeypatch.setattr(gpu.cuda, "cudaDriverGetVersion", lambda: (type(gpu.cuda).cudaError_t.cudaSuccess, 13010))
    elif change == "release":
        monkeypatch.setattr(cuda, "driver_release", lambda: "580.65.06")
    elif change == "version":
        monkeypatch.setattr(gpu.trt, "__version__", "10.4.0", raising=False)
    elif change == "device":
        newer = SimpleNamespace(name=b"Newer", major=9, minor=0, totalGlobalMem=1)
        monkeypatch.setattr(gpu.cuda, "cudaGetDeviceProperties", lambda device: (FakeCuda.cudaError_t(0), newer))
    elif change == "bundle":
        (bundle_copy / "note.txt").write_text("another export")
        listed_again(bundle_copy, "note.txt")
    else:
        record = SimpleNamespace(library="tensorrt", plan_sha256="0" * 64)
        monkeypatch.setattr(selftest, "read_records", lambda folder: ([(folder, record)], []))
    choose_tested_backend(Bundle(bundle_copy), "tensorrt")
    assert gpu.runs == 2


def test_every_precision_is_tested(gpu: Gpu, feature_bundle: Path) -> None:
    for precision in ("float32", "float16", "float32"):
        choose_tested_backend(Bundle(feature_bundle), "tensorrt", precision)
    assert gpu.runs == 2


def test_an_engine_that_fails_is_refused_by_name_and_passed_over_by_auto(
    gpu: Gpu, feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 3e-4)
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"tensorrt failed .* logits differ by 3\.0e-04, at most 0\.0001 .*camp doctor"
        ):
            Retriever(feature_bundle, "tensorrt")
        with Retriever(feature_bundle) as retriever:
            assert retriever.backend in ("openvino", "onnxruntime")
    assert gpu.runs == 1


def test_a_failure_that_was_looked_into_is_tested_again(
    gpu: Gpu, feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        spoil(broken, np.nan)
        assert choose_tested_backend(Bundle(feature_bundle)) != "tensorrt"
    assert selftest.run_and_remember(Bundle(feature_bundle), "tensorrt", "float32").passed
    assert choose_tested_backend(Bundle(feature_bundle)) == "tensorrt"


def test_auto_passes_over_an_engine_that_does_not_open(
    gpu: Gpu, feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTensorRt, "_deserialized", lambda self, plan, logger: None)
    assert choose_tested_backend(Bundle(feature_bundle)) in ("openvino", "onnxruntime")
    with pytest.raises(BackendError, match="tensorrt cannot load"):
        choose_tested_backend(Bundle(feature_bundle), "tensorrt")


def test_encoders_that_were_not_built_are_borrowed(
    gpu: Gpu, feature_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plans(monkeypatch, tmp_path, "scorer")
    test = self_test(Bundle(feature_bundle), "tensorrt", "float16")
    assert (test.passed, test.skipped) == (True, "")
    assert test.max_score_error > 0


def test_engines_for_fewer_words_are_not_tested_and_still_used(
    gpu: Gpu, feature_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST, "N", 2)
    test = self_test(Bundle(feature_bundle), "tensorrt", "float32")
    assert "the engine was built for 1 to 2" in test.skipped
    assert choose_tested_backend(Bundle(feature_bundle)) == "tensorrt"


# What is remembered


def test_a_result_is_what_was_remembered(caches: Path) -> None:
    test = SelfTest("tensorrt", "float16", 0.5, 0.25)
    remember("0" * 32, test)
    assert recall("0" * 32) == test
    assert recall("1" * 32) is None
    assert {path.name for path in (caches / "camp-sdk" / "self-tests").iterdir()} == {f"{'0' * 32}.json"}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{}", "[" * 100_000, '{"backend": "tensorrt", "precision": 3}', '{"backend": "a", "other": 1}',
     '{"backend": "tensorrt", "precision": "float32", "max_logit_error": "0"}', "\xff"],
)  # fmt: skip
def test_a_broken_result_is_none(caches: Path, content: str) -> None:
    folder = caches / "camp-sdk" / "self-tests"
    folder.mkdir(parents=True)
    (folder / "key.json").write_text(content, encoding="latin-1")
    assert recall("key") is None


def test_a_cache_that_cannot_be_written_is_no_error(
    gpu: Gpu, feature_bundle: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(caches)
    caches.write_text("a file, where a folder is needed")
    for _ in range(2):
        choose_tested_backend(Bundle(feature_bundle), "tensorrt")
    assert gpu.runs == 2


def test_a_machine_without_a_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    remember("key", SelfTest("tensorrt", "float32"))
    assert recall("key") is None


@pytest.mark.parametrize(
    ("content", "release"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.3.0  Release Build\n", "540.3.0"),
        ("something else", None),
        (None, None),
    ],
)
def test_the_drivers_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, release: str | None
) -> None:
    if content is not None:
        (tmp_path / "version").write_text(content)
    monkeypatch.setattr(cuda, "DRIVER_FILE", tmp_path / "version")
    assert cuda.driver_release() == release
