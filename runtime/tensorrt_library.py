"""The TensorRT that is installed here: TensorRT 10.3 and later, or TensorRT-RTX, and the GPU it finds."""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

from camp_sdk.runtime.errors import BackendError, MissingExtraError
from camp_sdk.runtime.plans import LIBRARIES, Here

OLDEST = (10, 3)  # JetPack 6
KEPT_ERRORS = 20


@dataclass(frozen=True)
class Library:
    """One of the two libraries, loaded, and the errors it logs.

    TensorRT has one logger a process, the first it is given: all that this package makes with it shares this one.
    """

    trt: Any
    logger: Any
    errors: list[str]

    def reason(self) -> str:
        """What was logged since the last call, in one line; the errors are forgotten."""
        found = list(dict.fromkeys(self.errors))
        self.errors.clear()
        return "; ".join(found)[:1500] or "it gives no reason"


@functools.cache
def open_library(backend: str) -> Library:
    """Load the library of a backend, "tensorrt" or "tensorrt-rtx".

    Raises MissingExtraError if it is not installed, BackendError if it cannot be loaded or is too old.
    """
    if backend not in LIBRARIES:
        raise BackendError(f"backend {backend!r}: expected one of {', '.join(LIBRARIES)}")
    module = LIBRARIES[backend]
    try:
        trt: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise BackendError(f"{module} is installed, but cannot be loaded: {error}") from None
        raise MissingExtraError(module, backend) from None
    except (ImportError, OSError) as error:
        raise BackendError(f"{module} is installed, but cannot be loaded: {error}") from None
    found = tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:2])
    if backend == "tensorrt" and found < OLDEST:
        raise BackendError(f"TensorRT {trt.__version__} is installed, expected 10.3 or later")
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # the library is loaded where it is needed, and has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(" ".join(message.split()))
                del errors[:-KEPT_ERRORS]

    return Library(trt, Logger(), errors)


def here_of(backend: str) -> Here:
    """A backend's library and the first GPU of this machine, if there is one. Raises as `open_library` does."""
    library = open_library(backend)
    return Here(LIBRARIES[backend], library.trt.__version__, *_gpu(backend))


def _gpu(backend: str) -> tuple[str | None, str | None]:
    """Compute capability of the first GPU, and the newest CUDA that its driver runs; None without a driver or a GPU."""
    try:
        from cuda.bindings import driver
    except ImportError:
        raise MissingExtraError("cuda-bindings", backend) from None
    try:
        answers = [_ask(driver, driver.cuInit, 0), _ask(driver, driver.cuDriverGetVersion)]
        device = _ask(driver, driver.cuDeviceGet, 0)
        for name in ("MAJOR", "MINOR"):
            attribute = driver.CUdevice_attribute[f"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{name}"]
            answers.append(_ask(driver, driver.cuDeviceGetAttribute, attribute, device))
    except (RuntimeError, OSError):  # no libcuda.so, or what it answers below
        return None, None
    _, version, major, minor = answers
    return f"{major}.{minor}", f"CUDA {version // 1000}.{version % 1000 // 10}"


def _ask(driver: Any, call: Any, *arguments: Any) -> Any:
    status, *answer = call(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(str(status))
    return answer[0] if answer else None
