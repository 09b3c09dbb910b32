"""Which backend is taken, what is refused and why: TensorRT and ONNX Runtime's providers, without a GPU."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BackendError, Retriever
from camp_sdk.runtime import backends
from camp_sdk.runtime.backends import choose_backend, open_engine
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines import onnxruntime_engine
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine, tensorrt_options
from camp_sdk.runtime.files import HeldFile
from tests.helpers.engines import install_plans
from tests.helpers.fake_cuda import FakeCuda, FakeTensorRt, install
from tests.helpers.profiles import SAME
from tests.helpers.tiny import CAPTIONS

pytestmark = pytest.mark.usefixtures("young_garbage")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeCuda, FakeTensorRt]:
    return install(monkeypatch)


# TensorRT


def test_a_retriever_on_tensorrt_ranks_as_on_onnx_runtime(
    fakes: tuple[FakeCuda, FakeTensorRt],
    feature_bundle: Path,
    feature_retriever: Retriever,
    features: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs = ("image", "text", "scorer", "explainer")
    install_plans(monkeypatch, tmp_path, *graphs)
    with Retriever(feature_bundle) as retriever:
        assert retriever.backend == "tensorrt"
        for precision in ("float32", "int8"):
            mine = retriever.encode_images(features, precision=precision)
            other = feature_retriever.encode_images(features, precision=precision)
            expected = feature_retriever.score_matrix(other, CAPTIONS, logits=True)
            np.testing.assert_allclose(retriever.score_matrix(mine, CAPTIONS, logits=True), expected, **SAME)
        ranked = retriever.rank("a red circle", mine, 10, shortlist=None)
        assert [m.corpus_id for m in ranked] == [m.corpus_id for m in feature_retriever.rank("a red circle", other, 10)]
        explained = [r.explain("a red circle", features[0]).to_words for r in (retriever, feature_retriever)]
        np.testing.assert_allclose(*explained, **SAME)
        found, wanted = (r.rank(features[1], CAPTIONS, 3) for r in (retriever, feature_retriever))
        assert [m.corpus_id for m in found] == [m.corpus_id for m in wanted]
    del mine
    assert fakes[0].held == 0


def test_a_gallery_in_half_precision_is_uploaded_once(
    fakes: tuple[FakeCuda, FakeTensorRt],
    feature_bundle: Path,
    features: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_plans(monkeypatch, tmp_path, "image", "text", "scorer")
    with (
        Retriever(feature_bundle, "tensorrt", "float16") as retriever,
        Retriever(feature_bundle, "onnxruntime", "float16") as plain,
    ):
        gallery, other = (r.encode_images(features) for r in (retriever, plain))
        assert gallery.precision == "float16"
        for _ in range(3):
            found, expected = (r.score_matrix(g, CAPTIONS) for r, g in ((retriever, gallery), (plain, other)))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)  # blocks of other sizes round elsewhere
        scorer = retriever._engines["scorer"]
        assert len(scorer.residents) == 1
        del gallery
        gc.collect()
        assert len(scorer.residents) == 0
    assert fakes[0].held == 0


def test_a_named_backend_without_its_engine_is_an_error(
    fakes: tuple[FakeCuda, FakeTensorRt], feature_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_plans(monkeypatch, tmp_path, "scorer")
    bundle = Bundle(feature_bundle)
    assert choose_backend(bundle, "tensorrt") == "tensorrt"
    open_engine(bundle, "text", "tensorrt").close()  # by ONNX Runtime
    install_plans(monkeypatch, tmp_path, "text")
    with pytest.raises(BackendError, match="no tensorrt engine was built for scorer"):
        choose_backend(bundle, "tensorrt")
    open_engine(bundle, "text", "tensorrt").close()  # needs no engine but its own


def test_auto_does_not_take_engines_that_came_with_a_bundle(
    fakes: tuple[FakeCuda, FakeTensorRt],
    feature_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install_plans(monkeypatch, tmp_path, "scorer", by_others=True)
    monkeypatch.setattr(backends, "_cuda_works", lambda bundle: False)
    assert choose_backend(Bundle(feature_bundle)) in ("openvino", "onnxruntime")
    assert "auto skips tensorrt: the engine came with the bundle" in caplog.text
    assert choose_backend(Bundle(feature_bundle), "tensorrt") == "tensorrt"


def test_a_scorer_alone_may_have_an_engine(
    fakes: tuple[FakeCuda, FakeTensorRt],
    feature_bundle: Path,
    feature_retriever: Retriever,
    features: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_plans(monkeypatch, tmp_path, "scorer")
    with Retriever(feature_bundle) as retriever:
        assert retriever.backend == "tensorrt"
        found = retriever.score_matrix(features, CAPTIONS, logits=True)
    np.testing.assert_allclose(found, feature_retriever.score_matrix(features, CAPTIONS, logits=True), **SAME)


def test_without_a_driver_tensorrt_is_an_error_and_auto_another_backend(
    fakes: tuple[FakeCuda, FakeTensorRt], feature_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes[0].driver = False
    bundle = Bundle(feature_bundle)
    with pytest.raises(BackendError, match="no NVIDIA GPU can be used here"):
        choose_backend(bundle, "tensorrt")
    monkeypatch.setattr(backends, "_cuda_works", lambda bundle: False)
    assert choose_backend(bundle) in ("openvino", "onnxruntime")


def test_tensorrt_that_is_not_installed(feature_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt is not installed; install it with: pip install '.\[tensorrt\]'"):
        choose_backend(Bundle(feature_bundle), "tensorrt")


# ONNX Runtime's providers


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An ONNX Runtime that lists the providers of NVIDIA; `used` is what its sessions say they use."""
    import onnxruntime

    state: dict[str, Any] = {"used": None}
    real = onnxruntime.InferenceSession

    def session(path: str, settings: Any, providers: list[tuple[str, Any]], enable_fallback: int) -> Any:
        state["providers"] = providers
        opened = real(path, settings, providers=["CPUExecutionProvider"])
        opened.get_providers = lambda: [state["used"] or providers[0][0]]
        return opened

    names = [*onnxruntime_engine.PROVIDERS.values()]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return state


@pytest.mark.parametrize(("device", "provider"), [("cuda", "CUDA"), ("tensorrt", "Tensorrt")])
def test_a_provider_that_is_not_really_in_use_names_the_library(
    gpu_build: dict[str, Any], feature_bundle: Path, device: str, provider: str
) -> None:
    gpu_build["used"] = "CPUExecutionProvider"
    uses = f"{provider}ExecutionProvider was asked for, but ONNX Runtime uses CPUExecutionProvider"
    with pytest.raises(BackendError, match=rf"{uses}: .*onnxruntime_providers_{device}"):
        OnnxRuntimeEngine(HeldFile(feature_bundle / "image.onnx"), device)


def test_a_provider_whose_libraries_load_but_has_no_device(
    gpu_build: dict[str, Any],
    fakes: tuple[FakeCuda, FakeTensorRt],
    feature_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu_build["used"], fakes[0].driver = "CPUExecutionProvider", False
    monkeypatch.setattr(onnxruntime_engine.ctypes, "CDLL", lambda *arguments: None)
    with pytest.raises(BackendError, match="uses CPUExecutionProvider: no NVIDIA GPU can be used here"):
        OnnxRuntimeEngine(HeldFile(feature_bundle / "image.onnx"), "cuda")


def test_the_text_graph_of_cuda_in_float32_runs_on_the_processor(
    gpu_build: dict[str, Any], feature_bundle: Path
) -> None:
    bundle = Bundle(feature_bundle)
    open_engine(bundle, "image", "onnxruntime-cuda").close()
    assert gpu_build["providers"][0][0] == "CUDAExecutionProvider"
    open_engine(bundle, "text", "onnxruntime-cuda").close()
    assert gpu_build["providers"][0][0] == "CPUExecutionProvider"


def test_the_tensorrt_provider_keeps_its_engines_out_of_the_bundle(
    gpu_build: dict[str, Any],
    feature_bundle: Path,
    features: NDArray[np.float32],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle(feature_bundle)
    with open_engine(bundle, "image", "onnxruntime-tensorrt") as engine:
        (first, options), second = gpu_build["providers"]
        assert (first, second[0]) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
        assert options["trt_profile_min_shapes"] == "features:1x1x12"
        assert options["trt_engine_cache_enable"] is options["trt_timing_cache_enable"] is True
        assert "trt_fp16_enable" not in options
        cache = Path(options["trt_engine_cache_path"])
        assert cache.is_dir()
        assert cache.is_relative_to(tmp_path)
        assert not cache.is_relative_to(feature_bundle)
        assert engine.run({"features": features})["image.V"].shape == (10, 5, 16)


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_float32_is_not_computed_in_tf32(gpu_build: dict[str, Any], feature_bundle: Path, device: str) -> None:
    OnnxRuntimeEngine(HeldFile(feature_bundle / "image.onnx"), device).close()
    assert gpu_build["providers"][-1] == ("CUDAExecutionProvider", {"use_tf32": 0})


def test_engines_of_other_weights_or_sizes_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    profile, larger = {"a": ((1, 2), (4, 2), (8, 2))}, {"a": ((1, 2), (4, 2), (9, 2))}
    made = [tensorrt_options(*given) for given in (("00", profile), ("01", profile), ("00", larger), ("00", profile))]
    folders = [options["trt_engine_cache_path"] for options in made]
    assert len(set(folders)) == 3
    assert folders[0] == folders[3]
    assert [made[0][f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")] == ["a:1x2", "a:4x2", "a:8x2"]


def test_without_cuda_bindings_onnx_runtime_uploads_by_itself(
    gpu_build: dict[str, Any], feature_bundle: Path, features: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with OnnxRuntimeEngine(HeldFile(feature_bundle / "image.onnx"), "cuda") as engine:
        feeds = {"features": features}
        assert engine.hold(feeds) is feeds
        assert engine.run(feeds)["image.V"].shape == (10, 5, 16)
