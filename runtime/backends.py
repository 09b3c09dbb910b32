"""Choose and open the engine that runs a graph: the backends by name, and the best one on this machine."""

from __future__ import annotations

import functools
import importlib.util
import logging
import platform
from collections.abc import Container

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.base import Engine, check_contract
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine, import_onnxruntime, tensorrt_options
from camp_sdk.runtime.engines.openvino_engine import OpenVinoEngine, import_openvino, require_bfloat16
from camp_sdk.runtime.engines.profiles import Limits, profile_of
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.lowered import COARSE, FIRST_PASSES, FLOAT8, INT8
from camp_sdk.runtime.processor import multiplies_int8
from camp_sdk.runtime.tensorrt.engine import TensorRtEngine, plan_here
from camp_sdk.runtime.tensorrt.library import open_library
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, graph_of, read_records, was_built, was_built_here
from camp_sdk.runtime.threads import core_quota, physical_cores

# Streams of the scorer on a processor. Two streams of one core each scored more pairs per second than one stream of two
# cores: 4 to 7% more with OpenVINO, 12% and at times 50% more with ONNX Runtime. The cores of one stream wait for each
# other after every product and read each other's results; two streams do not. More streams hold more intermediates.
STREAMS = 2
LOG = logging.getLogger("camp_sdk")
DEVICES = {"onnxruntime": "cpu", "onnxruntime-cuda": "cuda", "onnxruntime-tensorrt": "tensorrt"}
BACKENDS = (*DEVICES, "openvino", *LIBRARIES)
PRECISIONS = ("float32", "float16", "bfloat16", *COARSE)
# ONNX Runtime's TensorRT is not listed: whether it keeps the float32 parts of a float16 graph in float32 is unknown.
SCORES_IN = {
    "float16": ("onnxruntime", "onnxruntime-cuda", *LIBRARIES),
    "bfloat16": ("openvino",),
    INT8: ("onnxruntime", "openvino", *LIBRARIES),
    FLOAT8: ("onnxruntime", *LIBRARIES),  # processors compute it in float32
}


def choose_backend(
    bundle: Bundle, backend: str = "auto", precision: str = "float32", without: Container[str] = ()
) -> str:
    """Resolve ``"auto"`` to the best backend of this machine; check any other backend and return it unchanged.

    ``"auto"`` tries, in this order: TensorRT or TensorRT-RTX, if this user built an engine of the scorer that fits;
    ONNX Runtime's CUDA, if it can open a graph; OpenVINO, in float32, if it is installed and the processor is an x86,
    where it was measured to be faster; ONNX Runtime on the CPU. In bfloat16 it is always OpenVINO, the only backend
    with this precision.

    Args:
        bundle: the bundle to score with.
        backend: "auto", or the name of a backend.
        precision: "float32", "float16" or "bfloat16"; int8 and float8 are for the first pass of a ranking alone.
        without: backends that "auto" skips.

    Returns:
        The name of the backend.

    Raises:
        BackendError: the backend is unknown, is not installed, has no engine that fits, or does not score in this
            precision; or the precision is unknown.
        BundleError: the bundle has no graphs in this precision.
    """
    _check_precision(bundle, precision)
    if precision in COARSE:
        raise BackendError(
            f"{precision} is too coarse for scores of its own: open the retriever in float32, and use {precision} for "
            f'the first pass of a ranking, rank(..., precision="{precision}")'
        )
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


def fast_first_pass(bundle: Bundle, backend: str) -> str | None:
    """The fastest precision here for the first pass of a ranking; None if none is known to be faster than one pass.

    On GPUs there is none: nothing has been measured there.

    Args:
        bundle: the bundle, which may have graphs for it.
        backend: the name of the backend that scores.
    """
    if backend in LIBRARIES:
        return None
    own = bundle.manifest.precisions
    measured = [p for p in FIRST_PASSES if p in own and own[p].logit_error is not None]
    return next((p for p in measured if backend in SCORES_IN[p] and is_fast(p)), None)


@functools.cache
def is_fast(precision: str) -> bool:
    """Whether this machine's processor has instructions for products in the precision of a first pass."""
    if precision in COARSE:
        return precision == INT8 and multiplies_int8()
    try:
        require_bfloat16()
    except BackendError:
        return False
    return True


def library_version(backend: str) -> str:
    """The version of a backend's library.

    Raises:
        BackendError: the library is not installed or cannot be loaded.
    """
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
            LOG.warning("auto skips %s: %s", backend, error)
            continue
        if was_built_here(record):
            return backend
        LOG.warning(
            "auto skips %s: the engine came with the bundle, and an engine is a program; choose the backend by name if "
            "you trust the source of the bundle, or build your own engine with: camp build --force",
            backend,
        )
    if "onnxruntime-cuda" not in without and _cuda_works(bundle):
        return "onnxruntime-cuda"
    x86 = platform.machine().lower() in ("x86_64", "amd64") and precision == "float32"
    return "openvino" if x86 and importlib.util.find_spec("openvino") else "onnxruntime"


def _cuda_works(bundle: Bundle) -> bool:
    # A trial, because ONNX Runtime lists the provider wherever its GPU build is installed, even without a GPU.
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
    """Open one graph of a bundle on a backend.

    Two cases run on the CPU with ONNX Runtime instead: with TensorRT, a graph other than the scorer for which no
    engine was built; and with onnxruntime-cuda, a float32 text graph.

    Args:
        bundle: the bundle that holds the graph.
        graph: "image", "text", "scorer", "explainer" or "vision".
        backend: "auto", or the name of a backend.
        threads: the number of threads that compute on the CPU; None uses every core.
        precision: "float32", "float16", "bfloat16", "int8" or "float8".
        cuda_graphs: record and replay runs as CUDA graphs, as in `TensorRtEngine`; other backends ignore it.

    Raises:
        BundleError: the bundle has no such graph or precision, or the graph does not match the manifest.
        BackendError: the backend or the precision is unknown, or the backend cannot be used here.
    """
    _check_precision(bundle, precision)
    spec, own = graph_of(bundle, graph, precision)
    if backend == "auto":
        backend = choose_backend(bundle, backend, precision)
    _check_backend(backend, precision)
    if backend in LIBRARIES and graph != "scorer" and not was_built(bundle, graph, precision, backend):
        backend = "onnxruntime"  # no engine was built: camp build can be limited to some graphs
        _check_backend(backend, precision)
    if (backend, graph, own) == ("onnxruntime-cuda", "text", "float32"):
        # cuDNN may run the GRU in TF32, and ONNX Runtime has no option to prevent it: logits would be off by 6e-4.
        backend = "onnxruntime"
    threads = threads or core_quota()  # without a quota, the engines count the cores themselves
    alone = graph != "scorer" or backend not in ("onnxruntime", "openvino")
    streams = 1 if alone else min(STREAMS, threads or physical_cores())
    engine: Engine
    if backend in LIBRARIES:
        plan, record = plan_here(bundle, graph, precision, backend)
        engine = SplittingEngine(TensorRtEngine(plan, backend, cuda_graphs), spec, record.profile)
    elif backend == "openvino":
        # Intermediates of half the bytes: memory limits what is left of the scorer when its maps multiply bytes.
        narrow = precision == INT8 and own == precision and bundle.manifest.precisions[INT8].rest_in_bfloat16
        engine = OpenVinoEngine(bundle.file(spec.file), threads, streams, narrow and is_fast("bfloat16"))
    else:
        engine = _open_graph(bundle, spec, DEVICES[backend], threads, graph == "scorer", streams)
    try:
        check_contract(engine, spec)
    except BundleError:
        engine.close()
        raise
    engine.contract = spec
    if precision == INT8 and own == precision:
        # Its products take so little time that caches decide: 9 to 18% faster with half-sized blocks.
        engine.block_bytes //= 2
    return engine


def _open_graph(bundle: Bundle, spec: GraphSpec, device: str, threads: int | None, spin: bool, streams: int) -> Engine:
    file = bundle.file(spec.file)
    if device != "tensorrt":
        return OnnxRuntimeEngine(file, device, threads, spin, streams=streams)
    profile = profile_of(spec, bundle.manifest, Limits())
    options = tensorrt_options(bundle.manifest.files[spec.file].sha256, profile)
    return SplittingEngine(OnnxRuntimeEngine(file, device, threads, spin, options), spec, profile)
