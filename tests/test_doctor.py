"""`camp doctor`: an answer and an exit code whatever is missing or broken, and never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from camp_sdk import Bundle
from camp_sdk.diagnosis import diagnose
from camp_sdk.runtime import selftest
from camp_sdk.runtime.engines import onnxruntime_engine
from camp_sdk.runtime.selftest import choose_tested_backend
from tests.helpers.command import Camp
from tests.helpers.engines import install_plans, write_engine
from tests.helpers.fake_cuda import install
from tests.helpers.golden import GRAPHS, listed_again, spoil, with_golden

ROOT = Path(__file__).parents[1]
BLOCKED = """
import sys
sys.modules |= dict.fromkeys(sys.argv.pop(1).split(","))
sys.argv[0] = "camp"
from camp_sdk.commands.app import main
main()
"""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = install(monkeypatch)
    fake.driver = False


def doctor_without(packages: str, *arguments: object) -> tuple[int, dict[str, Any]]:
    """`camp doctor --json` in a process that cannot import some packages: its exit code and its answer."""
    command = [sys.executable, "-W", "error", "-c", BLOCKED, packages, "doctor", "--json", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


def states(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {state["backend"]: state for state in answer["backends"]}


# Without a bundle


def test_what_is_not_installed_is_named_with_its_extra() -> None:
    code, answer = doctor_without("torch,cuda,openvino,tensorrt,tensorrt_rtx")
    found = states(answer)
    assert (code, answer["healthy"], answer["bundle"]) == (0, True, None)
    assert found["onnxruntime"]["problem"] == ""
    assert found["onnxruntime"]["version"]
    for backend in ("openvino", "tensorrt", "tensorrt-rtx"):
        assert found[backend]["version"] is None
        assert found[backend]["problem"].endswith(f"pip install '.[{backend}]' (in a clone of camp-sdk)")
    assert "CUDAExecutionProvider" in found["onnxruntime-cuda"]["problem"]
    assert (answer["gpu"], "cuda-bindings is not installed" in answer["gpu_problem"]) == (None, True)


def test_without_any_backend_the_exit_code_is_1(feature_bundle: Path) -> None:
    nothing = "torch,onnxruntime,cuda,openvino,tensorrt,tensorrt_rtx"
    code, answer = doctor_without(nothing)
    assert (code, answer["healthy"]) == (1, False)
    assert all(state["problem"] for state in answer["backends"])
    code, answer = doctor_without(nothing, feature_bundle)
    assert (code, answer["bundle"]["problem"], answer["bundle"]["self_tests"]) == (1, "", [])
    assert answer["bundle"]["auto"][0]["backend"] is None
    assert "onnxruntime is not installed" in answer["bundle"]["auto"][0]["problem"]


def test_the_gpu_and_its_driver_are_told(camp: Camp, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr("camp_sdk.runtime.engines.cuda.driver_release", lambda: "540.3.0")
    out = camp("doctor").out
    assert "GPU: Fake GPU, 1.1 GB, compute capability 8.7, driver 540.3.0 for CUDA 13.0, CUDA runtime 12.6" in out
    answer = json.loads(camp("doctor", "--json").out)
    assert (answer["gpu"]["name"], answer["gpu_problem"], answer["driver_release"]) == ("Fake GPU", "", "540.3.0")
    assert states(answer)["tensorrt"] == {"backend": "tensorrt", "version": "10.3.0", "problem": ""}


def test_without_a_gpu_its_backends_are_nothing_to_mend(camp: Camp, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, _ = install(monkeypatch)
    needy = "onnxruntime-cuda, onnxruntime-tensorrt, tensorrt, tensorrt-rtx"
    note = f"These backends need an NVIDIA GPU, and this machine has none: {needy}."
    assert note not in " ".join(camp("doctor").out.split())
    fake.driver = False
    assert note in " ".join(camp("doctor").out.split())


def test_a_provider_names_the_library_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*onnxruntime_engine.PROVIDERS.values()])
    found = {state.backend: state.problem for state in diagnose().backends}
    assert "libonnxruntime_providers_cuda" in found["onnxruntime-cuda"]
    assert "libonnxruntime_providers_tensorrt" in found["onnxruntime-tensorrt"]


def test_a_library_that_breaks_while_it_is_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        @property
        def __version__(self) -> str:
            raise RuntimeError("built for\n  another numpy " + "x" * 10_000)

    monkeypatch.setitem(sys.modules, "openvino", Broken())
    (problem,) = [state.problem for state in diagnose().backends if state.backend == "openvino"]
    assert problem.startswith("built for another numpy xxx")
    assert len(problem) < 700


# With a bundle


def test_a_bundle_that_works(camp: Camp, no_gpu: None, feature_bundle: Path) -> None:
    done = camp("doctor", feature_bundle)
    assert done.code == 0
    assert "variant paper, in float32, float16" in done.out
    assert "running the self-test" in done.err
    answer = json.loads(camp("doctor", feature_bundle, "--json").out)["bundle"]
    ran = {(test["backend"], test["precision"]): test for test in answer["self_tests"]}
    assert {("onnxruntime", "float32"), ("openvino", "float32"), ("onnxruntime", "float16")} <= ran.keys()
    assert all(test["passed"] and test["max_logit_error"] > 0 for test in ran.values() if not test["problem"])
    default = answer["auto"][0]
    assert (default["precision"], default["backend"]) == ("float32", choose_tested_backend(Bundle(feature_bundle)))
    assert "no NVIDIA GPU can be used here" in default["passed_over"]["tensorrt"]
    assert "openvino" not in answer["auto"][1]["passed_over"]  # it has no float16 to be passed over for


@pytest.mark.parametrize("columns", [80, 140])
def test_what_is_printed_fits_the_terminal(camp: Camp, no_gpu: None, bundle_copy: Path, columns: int) -> None:
    write_engine(Bundle(bundle_copy))
    lines = camp("doctor", bundle_copy, columns=columns).out.splitlines()
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)  # nothing is cut


def test_a_default_that_scores_wrong_is_exit_code_1(
    camp: Camp, no_gpu: None, feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, np.nan)
    done = camp("doctor", feature_bundle)
    assert done.code == 1
    assert "FAILED" in done.out
    assert "which is broken: logits differ by nan" in done.out
    answer = json.loads(camp("doctor", feature_bundle, "--json").out)  # strict JSON: NaN would be none
    assert {test["max_logit_error"] for test in answer["bundle"]["self_tests"] if not test["passed"]} == {None}


def test_a_broken_tokenizer_is_found(camp: Camp, no_gpu: None, bundle_copy: Path) -> None:
    (bundle_copy / "tokenizer.json").write_text("{}")
    listed_again(bundle_copy, "tokenizer.json")
    done = camp("doctor", bundle_copy)
    assert done.code == 1
    assert "is not a tokenizer" in done.out


@pytest.mark.parametrize("file", ["manifest.json", "scorer.onnx", "golden.npz"])
def test_a_broken_bundle_is_told(camp: Camp, bundle_copy: Path, file: str) -> None:
    (bundle_copy / file).write_bytes(b"broken")
    done = camp("doctor", bundle_copy)
    assert done.code == 1
    assert f"bundle: {bundle_copy / file}" in done.out
    assert json.loads(camp("doctor", bundle_copy, "--json").out)["bundle"]["auto"] == []


def test_golden_examples_that_are_none_are_told(camp: Camp, no_gpu: None, bundle_copy: Path) -> None:
    with_golden(bundle_copy, logits=None)
    done = camp("doctor", bundle_copy)
    assert done.code == 1
    assert "golden.npz is not what was exported" in done.out


def test_engines_are_listed_with_what_does_not_fit(camp: Camp, no_gpu: None, bundle_copy: Path) -> None:
    bundle = Bundle(bundle_copy)
    write_engine(bundle)
    write_engine(bundle, graph="image\x1b[31m", graph_sha256="0" * 64)
    (bundle_copy / "engines" / "broken").mkdir()
    done = camp("doctor", bundle_copy)
    assert done.code == 0
    assert "image engine: it was built for GPUs of compute capability 8.7, this machine has none" in done.out
    assert "\x1b[31m" not in done.out
    assert "record: " in done.out
    answer = json.loads(camp("doctor", bundle_copy, "--json").out)["bundle"]
    assert {engine["library_version"] for engine in answer["engines"]} == {"10.3.0"}
    assert len(answer["broken_records"]) == 2


def test_engines_that_fit_are_tested_and_taken(
    camp: Camp, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    write_engine(Bundle(bundle_copy))
    install_plans(monkeypatch, tmp_path, *GRAPHS)
    answer = json.loads(camp("doctor", bundle_copy, "--json").out)["bundle"]
    assert [engine["problem"] for engine in answer["engines"]] == [""]
    assert [choice["backend"] for choice in answer["auto"][:2]] == ["tensorrt", "tensorrt"]
    monkeypatch.setattr(selftest, "self_test", lambda *arguments: pytest.fail("it was remembered"))
    assert choose_tested_backend(Bundle(bundle_copy)) == "tensorrt"


def test_engines_that_score_wrong_are_told_and_not_taken(
    camp: Camp, bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch)
    write_engine(Bundle(bundle_copy))
    install_plans(monkeypatch, tmp_path, *GRAPHS)
    failing = SimpleNamespace(backend="tensorrt")
    real = selftest.self_test

    def wrong(bundle: Bundle, backend: str, precision: str) -> selftest.SelfTest:
        test = real(bundle, backend, precision)
        return selftest.SelfTest(backend, precision, 1.0, 1.0) if backend == failing.backend else test

    monkeypatch.setattr(selftest, "self_test", wrong)
    done = camp("doctor", bundle_copy, "--json")
    default = json.loads(done.out)["bundle"]["auto"][0]
    assert done.code == 0  # auto takes another
    assert default["backend"] != "tensorrt"
    assert default["passed_over"]["tensorrt"] == "logits differ by 1.0e+00, at most 0.0001 is allowed"
