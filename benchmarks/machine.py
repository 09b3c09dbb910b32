"""The machine: its description, and its rates of matrix products and copies, from which the peaks are computed."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camp_sdk import Bundle, BundleError, export

REPEATS = 10
COPIED_BYTES = 256 << 20
Timer = Callable[[Callable[[], object]], float]


def processor() -> str:
    """The processor's name, as far as the system reports it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def describe(*packages: str) -> dict[str, Any]:
    """The machine and the versions of ``packages``, for a results file."""
    return {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in packages},
    }


def is_current(bundle: Path, precisions: tuple[str, ...] = ()) -> bool:
    """Whether a bundle of an earlier run can be measured again.

    It must open, have all ``precisions``, and be newer than the export code.
    """
    try:
        available = Bundle(bundle).manifest.precisions.keys()
    except BundleError:
        return False
    code = max(path.stat().st_mtime for path in Path(export.__file__).parent.rglob("*.py"))
    return set(precisions) <= available and (bundle / "manifest.json").stat().st_mtime > code


def median_s(call: Callable[[], object], repeats: int = 9) -> float:
    """Median seconds of a call, after two warm-up calls."""
    for _ in range(2):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def matmul_rates(rows: int, width: int) -> dict[str, dict[str, float]]:
    """GFLOP/s of [rows, width] x [width, width] with every installed library; the highest is the machine's rate.

    Returns:
        The rates by precision, then by library.
    """
    import onnx  # here: the GPU benchmark does not need all of these libraries
    import onnxruntime
    import openvino
    from onnx import TensorProto, helper, numpy_helper

    x, w = (
        np.random.default_rng(0).standard_normal(shape, dtype=np.float32) for shape in ((rows, width), (width, width))
    )
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, width])],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    out = np.empty((rows, width), np.float32)
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "float32": {
            "numpy": lambda: np.matmul(x, w, out=out),
            "torch": _torch_product(x, w, torch.float32),
            "onnxruntime": lambda: session.run(None, {"x": x}),
            "openvino": _openvino_product(content, x, openvino.Type.f32),
        },
        "bfloat16": {"torch": _torch_product(x, w, torch.bfloat16)},
    }
    if "BF16" in capabilities():
        calls["bfloat16"]["openvino"] = _openvino_product(content, x, openvino.Type.bf16)
    work = 2 * rows * width * width / 1e9
    return {kind: {name: work / median_s(call, 25) for name, call in some.items()} for kind, some in calls.items()}


def capabilities() -> list[str]:
    """The precisions that this processor computes in, as OpenVINO reports them."""
    import openvino

    return list(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _torch_product(x: np.ndarray, w: np.ndarray, dtype: torch.dtype) -> Callable[[], object]:
    a, b = torch.from_numpy(x).to(dtype), torch.from_numpy(w).to(dtype)
    return lambda: a @ b


def _openvino_product(content: bytes, x: np.ndarray, precision: Any) -> Callable[[], object]:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": precision, "NUM_STREAMS": 1}
    core = openvino.Core()
    request = core.compile_model(core.read_model(content, b""), "CPU", settings).create_infer_request()
    return lambda: request.infer([x], share_inputs=True, share_outputs=True)


def half_product_rate(rows: int, width: int, timer: Timer, device: str = "cuda") -> float:
    """FLOP/s of [rows, width] x [width, width] in half precision with PyTorch.

    Args:
        rows: rows of the left matrix.
        width: its columns, and rows and columns of the right matrix.
        timer: returns the seconds of a call.
        device: the PyTorch device.
    """
    x, w, out = (torch.randn(n, width, device=device).half() for n in (rows, width, rows))

    def products() -> None:
        for _ in range(REPEATS):
            torch.matmul(x, w, out=out)

    return REPEATS * 2 * rows * width**2 / _median_of(timer, products)


def copy_rate(timer: Timer, device: str = "cuda") -> float:
    """Bytes per second of a copy inside the device's memory with PyTorch, read and written bytes both counted.

    Args:
        timer: returns the seconds of a call.
        device: the PyTorch device.
    """
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copies() -> None:
        for _ in range(REPEATS):
            target.copy_(source)

    return REPEATS * 2 * COPIED_BYTES / _median_of(timer, copies)


def _median_of(timer: Timer, call: Callable[[], object]) -> float:
    for _ in range(3):
        timer(call)
    return statistics.median(timer(call) for _ in range(15))
