"""Which engine runs a graph: the backends by name, the one that is best here, and opening a graph on it."""

from __future__ import annotations

import importlib.util
import logging
import platform
from collections.abc import Container

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.base import Engine, check_contract
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime, tensorrt_options
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine, import_openvino, require_bfloat16
from camp_sdk.runtime.engines.profiles import Limits, profile_of
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.manifest import GraphSpec
from camp_sdk.runtime.tensorrt.engine import TensorRtEngine, plan_here
from camp_sdk.runtime.tensorrt.library import open_library
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, graph_of, read_records, was_built, was_built_here
from camp_sdk.runtime.threads import physical_cores

# Of the scorer on a processor. Two of one core each scored 4 to 7% more pairs a second than one of two cores with OpenVINO, 12%
# more with ONNX Runtime, and at times half as many again: neither waits for the other after every product, nor for what it
# made. More streams mean more intermediates at once.
STREAMS = 2
LOG = logging.getLogger("camp_sdk")
DEVICES = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}
BACKENDS = (*DEVICES, "openvino", *LIBRARIES)
PRECISIONS = ("float32", "float16", "bfloat16")
# Whether ONNX Runtime's TensorRT keeps the float32 parts of a float16 graph in float32 is not known, so it is not offered.
SCORES_IN = {
    "float16": ("onnxruntime", "onnxruntime-cuda", *LIBRARIES),
    "bfloat16": ("openvino",),
}


def choose_backend(
    bundle: Bundle, backend: str = "auto", precision: str = "float32", without: Container[str] = ()
) -> str:
    """The backend ``"auto"`` stands for on this machine: TensorRT (or TensorRT-RTX) where this user built an engine of
    the scorer that fits, then ONNX Runtime's CUDA where it really opens a graph, otherwise OpenVINO where it is installed and
    the processor an x86, for which it was measured to be the faster one, otherwise ONNX Runtime on the CPU.

    without: backends that auto does not take. Any other known name is returned as it is. Raises BackendError for an unknown
    one, one that is not installed, or a precision it does not have; BundleError for a precision that the bundle does not have.
    """
    _check_precision(bundle, precision)
    if backend == "auto":
        backend = _best_backend(bundle, precision, without)
    _check_backend(backend, precision)
    if backend in LIBRARIES:
        plan_here(bundle, "scorer", precision, backend)
    return backend


def _check_precision(bundle: Bundle, precision: str) -> None:
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    bundle.manifest.graphs_in(precision)


def _check_backend(backend: str, precision: str) -> None:
    if backend not in BACKENDS:
        raise BackendError(f"backend {backend!r}: expected auto or one of {', '.join(BACKENDS)}")
    if backend not in (able := SCORES_IN.get(precision, BACKENDS)):
        raise BackendError(f"{backend} does not score in {precision}: use backend {' or '.join(able)}")
    if backend == "openvino":
        import_openvino()
        if precision == "bfloat16":
            require_bfloat16()
    elif backend in LIBRARIES:
        open_library(backend)
    else:
        import_onnxruntime(DEVICES[backend])


def library_version(backend: str) -> str:
    """The version of a backend's library. Raises BackendError if it is not installed or cannot be loaded."""
    if backend == "openvino":
        return str(import_openvino().__version__)
    if backend in LIBRARIES:
        return str(open_library(backend).trt.__version__)
    ort, _ = import_onnxruntime("cpu")
    return str(ort.__version__)


def _best_backend(bundle: Bundle, precision: str, without: Container[str]) -> str:
    if precision == "bfloat16":
        return "openvino"
    built = {record.library for _, record in read_records(bundle.folder)[0]}
    for backend in (name for name, library in LIBRARIES.items() if library in built and name not in without):
        try:
            _, record = plan_here(bundle, "scorer", precision, backend)
        except BackendError as error:
            LOG.warning("auto does not take %s: %s", backend, error)
            continue
        if was_built_here(record):
            return backend
        LOG.warning(
            "auto does not take %s: the engine came with the bundle, and an engine is a program; ask for it by name if you "
            "trust where it comes from, or build your own with: camp build --force",
            backend,
        )
    if "onnxruntime-cuda" not in without and _cuda_works(bundle):
        return "onnxruntime-cuda"
    x86 = platform.machine().lower() in ("x86_64", "amd64") and precision == "float32"
    return "openvino" if x86 and importlib.util.find_spec("openvino") else "onnxruntime"


def _cuda_works(bundle: Bundle) -> bool:
    # ONNX Runtime lists the provider wherever its GPU build is installed, and falls back in silence without a GPU.
    try:
        import_onnxruntime("cuda")
        open_engine(bundle, "image", "onnxruntime-cuda").close()
    except (BackendError, BundleError):
        return False
    return True


def open_engine(
    bundle: Bundle,
    graph: str,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "float32",
    cuda_graphs: bool = False,
) -> Engine:
    """Open one graph of a bundle ("image", "text", "scorer", "explainer" or "vision") on a backend.

    On TensorRT, a graph other than the scorer of which no engine was built is run by ONNX Runtime on the processor, and with
    onnxruntime-cuda a text graph in float32 is.
    cuda_graphs: as of `TensorRtEngine`; the other backends have none.

    Raises BundleError if the bundle has no such graph, or one that is not what the manifest says, BackendError if the
    backend is not there.
    """
    _check_precision(bundle, precision)
    spec, own = graph_of(bundle, graph, precision)
    if backend == "auto":
        backend = choose_backend(bundle, backend, precision)
    _check_backend(backend, precision)
    if backend in LIBRARIES and graph != "scorer" and not was_built(bundle, graph, precision, backend):
        backend = "onnxruntime"  # a graph that nobody built an engine of: camp build may be told to leave it
        _check_backend(backend, precision)
    if (backend, graph, own) == ("onnxruntime-cuda", "text", "float32"):
        # cuDNN may run its GRU in TF32, and ONNX Runtime has no option against that: logits would be off by 6e-4.
        backend = "onnxruntime"
    alone = graph != "scorer" or backend not in ("onnxruntime", "openvino")
    streams = 1 if alone else min(STREAMS, threads or physical_cores())
    engine: Engine
    if backend in LIBRARIES:
        plan, record = plan_here(bundle, graph, precision, backend)
        engine = SplittingEngine(TensorRtEngine(plan, backend, cuda_graphs), spec, record.profile)
    elif backend == "openvino":
        engine = OpenVinoEngine(bundle.path(spec.file), threads, streams)
    else:
        engine = _open_graph(bundle, spec, DEVICES[backend], threads, graph == "scorer", streams)
    try:
        check_contract(engine, spec)
    except BundleError:
        engine.close()
        raise
    return engine


def _open_graph(bundle: Bundle, spec: GraphSpec, device: str, threads: int | None, spin: bool, streams: int) -> Engine:
    path = bundle.path(spec.file)
    if device != "tensorrt":
        return OnnxRuntimeEngine(path, device, threads, spin, streams=streams)
    profile = profile_of(spec, bundle.manifest, Limits())
    options = tensorrt_options(bundle.manifest.files[spec.file].sha256, profile)
    return SplittingEngine(OnnxRuntimeEngine(path, device, threads, spin, options), spec, profile)
