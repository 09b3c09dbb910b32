"""Build engines from the graphs of a bundle, by one code path for TensorRT (10.3 and later, 11) and TensorRT-RTX.

Networks are strongly typed: the ONNX graph fixes the precision, and nothing here chooses one. TensorRT builds for the
GPU of this machine. TensorRT-RTX needs no GPU and builds for every GPU of compute capability 8.0 and later.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import MIN_HALF_SHARE, GraphSpec
from camp_sdk.runtime.engines.profiles import Limits, Profile, Shape, profile_of
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.files import cache_folder, write_aside
from camp_sdk.runtime.graph_file import read_graph
from camp_sdk.runtime.lowered import COARSE
from camp_sdk.runtime.manifest import EXPORT_AGAIN
from camp_sdk.runtime.tensorrt.build_progress import BuildProgress, monitor_of
from camp_sdk.runtime.tensorrt.library import Library, open_library
from camp_sdk.runtime.tensorrt.plans import (
    ENGINES,
    PLAN_FILE,
    RECORD_FILE,
    Here,
    PlanRecord,
    check_plan,
    engine_key,
    graph_of,
    read_record,
    remember_built,
)


@dataclass(frozen=True)
class EngineOrder:
    """An engine to build, or one that was built before.

    Args:
        bundle: the bundle that holds the graph.
        graph: the graph's name, "image", "text", "scorer", "explainer" or "vision".
        precision: a precision of the bundle; a graph without a version in that precision is built in float32.
        here: the library that builds the engine, and the GPU of this machine.
        limits: the largest inputs the engine accepts, and its scratch memory.
    """

    bundle: Bundle
    graph: str
    precision: str
    here: Here
    limits: Limits = field(default_factory=Limits)

    @property
    def spec(self) -> GraphSpec:
        """The graph's file and tensors.

        Raises:
            BundleError: the bundle has no such graph or precision.
        """
        return graph_of(self.bundle, self.graph, self.precision)[0]

    @property
    def own_precision(self) -> str:
        """The precision the graph computes in: float32 if the bundle has no version of it in `precision`."""
        return graph_of(self.bundle, self.graph, self.precision)[1]

    @property
    def graph_sha256(self) -> str:
        """SHA-256 of the graph's file, in hexadecimal."""
        return self.bundle.manifest.files[self.spec.file].sha256

    @property
    def profile(self) -> Profile:
        """The shapes the engine is built for."""
        return profile_of(self.spec, self.bundle.manifest, self.limits)

    @property
    def folder(self) -> Path:
        """The folder the engine is written to.

        Raises:
            BundleError: the bundle's engines/ is a link that leads out of the bundle.
        """
        engines = self.bundle.folder / ENGINES
        if engines.resolve() != self.bundle.folder.resolve() / ENGINES:
            raise BundleError(f"{engines} leads out of the bundle to {engines.resolve()}: remove it")
        return engines / engine_key(self.here, self.graph_sha256, self.profile, self.own_precision)


def built_engine(order: EngineOrder) -> PlanRecord | None:
    """The record of an intact engine that was built from the same order before; None if there is none."""
    try:
        record = read_record(order.folder)
        check_plan(order.folder, record)
    except (BackendError, BundleError, OSError):
        return None
    return record


def prefer(order: EngineOrder, record: PlanRecord) -> PlanRecord:
    """Mark an existing engine as the most recently built, because that is the one `find_plan` opens."""
    record = replace(record, built_at=time.time())
    with write_aside(order.folder / RECORD_FILE) as aside:
        aside.write_text(record.as_json(), encoding="utf-8")
    return record


def build_engine(order: EngineOrder, on_progress: Callable[[float], None] = lambda share: None) -> PlanRecord:
    """Build one engine and write it to the bundle's engines/, replacing an older one of the same key.

    Nothing is written until the plan is complete. Ctrl-C stops the build.

    Args:
        order: what to build.
        on_progress: receives the finished share of the build, 0..1, in another thread; an exception it raises stops the
            build and is raised again here.

    Returns:
        The record of the engine.

    Raises:
        BackendError: the graph cannot be built (the message gives the library's own reason), or the graph is of a
            lower precision but too little of it computes in it.
        BundleError: the bundle lacks the graph, or its manifest does not match the graph.
        InputError: the limits do not fit the bundle.
    """
    library, started, folder = open_library(order.here.backend), time.monotonic(), order.folder
    plan, low_share = _built(library, order, BuildProgress(on_progress))
    record = PlanRecord(
        library=order.here.library,
        library_version=order.here.version,
        compute_capability=order.here.target,
        driver=order.here.driver,
        graph=order.graph,
        precision=order.own_precision,
        graph_sha256=order.graph_sha256,
        profile=order.profile,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        low_share=low_share,
        build_s=round(time.monotonic() - started, 3),
        built_at=time.time(),
    )
    with write_aside(folder) as aside:
        aside.mkdir()
        (aside / PLAN_FILE).write_bytes(plan)
        (aside / RECORD_FILE).write_text(record.as_json(), encoding="utf-8")
    remember_built(record)
    return record


def _built(library: Library, order: EngineOrder, progress: BuildProgress) -> tuple[bytes, float]:
    """The plan, and the share of its matrix products and convolutions that compute in the graph's precision."""
    trt = library.trt
    if order.here.library == "tensorrt" and order.here.compute_capability is None:
        raise BackendError("TensorRT builds engines on the GPU they are for, and no GPU or no driver was found here")
    library.errors.clear()
    try:
        builder = trt.Builder(library.logger)
    except (TypeError, RuntimeError):  # pybind11 raises these when the library returns no builder
        raise BackendError(f"{order.here.backend} cannot make a builder: {library.reason()}") from None
    # TensorRT 11 types strongly even without the flag.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, order, network)
    share = _low_share(trt, network, order)
    config = _configured(library, order, builder)
    monitor = monitor_of(trt, progress)
    timings = _timing_cache(order.here)
    config.progress_monitor = monitor
    if timings:
        _load_timing_cache(config, timings)
    plan = _run(lambda: builder.build_serialized_network(network, config), progress)
    if plan is None:
        raise BackendError(f"{_named(order)} cannot be built: {library.reason()}")
    if timings:
        _keep_timing_cache(config, timings)
    return bytes(plan), share


def _named(order: EngineOrder) -> str:
    return f"{order.here.backend} {order.here.version}: the {order.own_precision} {order.graph} graph"


def _parse(library: Library, order: EngineOrder, network: Any) -> None:
    parser = library.trt.OnnxParser(network, library.logger)
    if not parser.parse(read_graph(order.bundle.file(order.spec.file))):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"{e.node_operator()} node {e.node_name()!r}: {' '.join(e.desc().split())}" for e in errors)
        raise BackendError(f"{_named(order)} cannot be parsed: {reasons[:1500] or library.reason()}")
    found, expected = {network.get_input(index).name for index in range(network.num_inputs)}, order.profile.keys()
    if found != expected:
        raise BundleError(
            f"{order.spec.file} has the inputs {sorted(found)}, manifest.json says {sorted(expected)}; {EXPORT_AGAIN}"
        )


def _low_share(trt: Any, network: Any, order: EngineOrder) -> float:
    """The share of matrix products and convolutions that compute in the graph's precision; 0 in float32.

    Products multiply bytes if both factors are dequantised: the library then leaves out the nodes between.

    These layers take most of the time, including those inside a recurrence, which is a loop around them. Counting every
    layer would also count reshapes, and the softmax and normalisation that are float32 by design. Each layer is
    weighted by its largest tensor of fixed size, so that a d x d projection counts more than the few numbers of a
    pair's words. Raises BackendError if a graph of half precision has a share below `MIN_HALF_SHARE`, and a product by
    weights in float32: products of two activations are float32 by design. In int8 and float8, the final MLP is float32
    as well, so only a graph without any product of bytes is refused.
    """
    kinds, layers = trt.LayerType, [network.get_layer(index) for index in range(network.num_layers)]
    heavy = (kinds.MATRIX_MULTIPLY, kinds.EINSUM, kinds.CONVOLUTION, kinds.DECONVOLUTION)
    products = [layer for layer in layers if layer.type in heavy]
    coarse = order.own_precision in COARSE
    halves = [layer for layer in products if layer.get_output(0).dtype == trt.DataType.HALF]
    low = _of_bytes(trt, layers, products) if coarse else halves
    share = sum(map(_weight, low)) / max(1, sum(map(_weight, products)))
    by_weights = len(_by_weights(trt, layers, products)) > len(_by_weights(trt, layers, low))
    least = 0.0 if coarse else MIN_HALF_SHARE
    if order.own_precision != "float32" and (not low or share < least) and by_weights:
        kind = order.own_precision if coarse else "half precision"
        raise BackendError(f"{_named(order)} is mostly float32: {share:.0%} of it is in {kind}; {EXPORT_AGAIN}")
    return share


def _of_bytes(trt: Any, layers: list[Any], products: list[Any]) -> list[Any]:
    """The products of two dequantised factors."""
    dequantised = _made_by(trt, layers, trt.LayerType.DEQUANTIZE)
    return [layer for layer in products if _inputs(layer) <= dequantised]


def _by_weights(trt: Any, layers: list[Any], products: list[Any]) -> list[Any]:
    """The products that have a constant factor, and convolutions, whose kernels may be no inputs."""
    kinds = trt.LayerType
    constants = _made_by(trt, layers, kinds.CONSTANT)
    convolutions = (kinds.CONVOLUTION, kinds.DECONVOLUTION)
    return [layer for layer in products if layer.type in convolutions or constants & _inputs(layer)]


def _made_by(trt: Any, layers: list[Any], kind: Any) -> set[str]:
    """The tensors that layers of a kind make, also after a change of shape or type."""
    kinds, made = trt.LayerType, set()
    for layer in layers:
        moved = layer.type in (kinds.SHUFFLE, kinds.CAST, kinds.IDENTITY) and layer.get_input(0).name in made
        if layer.type == kind or moved:
            made.add(layer.get_output(0).name)
    return made


def _inputs(layer: Any) -> set[str]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return {tensor.name for tensor in tensors if tensor is not None}


def _weight(layer: Any) -> int:
    tensors = [layer.get_output(0), *(layer.get_input(index) for index in range(layer.num_inputs))]
    return max(math.prod(int(size) for size in tensor.shape if size > 0) for tensor in tensors if tensor is not None)


def _configured(library: Library, order: EngineOrder, builder: Any) -> Any:
    trt, config = library.trt, builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; TF32 keeps only ten bits of a float32's fraction
    if order.limits.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, order.limits.workspace_bytes)
    if order.here.library == "tensorrt_rtx" and order.here.target is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{order.here.target.replace('.', '')}"), 0)
    shapes = builder.create_optimization_profile()
    for name, (smallest, expected, largest) in order.profile.items():
        shapes.set_shape(name, smallest, expected, largest)
    if config.add_optimization_profile(shapes) < 0:
        raise BackendError(f"{_named(order)} does not take the shapes {order.profile}: {library.reason()}")
    return config


def _run(build: Callable[[], Any], progress: BuildProgress) -> Any:
    """Build in a separate thread: Python handles Ctrl-C only in the main one, which must not block in the library."""
    with ThreadPoolExecutor(1) as pool:
        built = pool.submit(build)
        try:
            plan = built.result()
        except BaseException:
            progress.cancelled = True
            raise
    if progress.failure is not None:
        raise progress.failure
    return plan


def _timing_cache(here: Here) -> Path | None:
    """The file that keeps TensorRT's kernel timings between builds; None for TensorRT-RTX, which has no timing cache.

    It is not in the bundle: timings serve every bundle, a new export deletes engines/, and a file that came with a
    bundle cannot be trusted.
    """
    if here.library != "tensorrt":
        return None
    return cache_folder() / f"tensorrt-{here.version}-{here.compute_capability}.timing"


def _load_timing_cache(config: Any, path: Path) -> None:
    """Start from the timings of earlier builds; from an empty cache if there are none, or only another device's."""
    kept = path.read_bytes() if path.is_file() else b""
    for content in (kept, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return


def _keep_timing_cache(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        with write_aside(path) as aside:
            aside.write_bytes(bytes(cache.serialize()))
    except OSError:  # the home folder is not writable: the only effect is that the next build takes longer
        return


def trtexec_command(order: EngineOrder) -> str:
    """The command line that builds the same plan with the library's own tool, into the current folder."""
    rtx = order.here.library == "tensorrt_rtx"
    command = ["tensorrt_rtx" if rtx else "trtexec", f"--onnx={order.bundle.file(order.spec.file).path}", "--noTF32"]
    command += [] if rtx else ["--stronglyTyped"]
    for index, option in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = ",".join(f"{name}:{_times(ranges[index])}" for name, ranges in order.profile.items())
        command.append(f"--{option}={shapes}")
    if order.limits.workspace_bytes is not None:
        command.append(f"--memPoolSize=workspace:{order.limits.workspace_bytes}B")
    return shlex.join([*command, f"--saveEngine={order.graph}.plan", "--skipInference"])


def _times(shape: Shape) -> str:
    return "x".join(map(str, shape))
