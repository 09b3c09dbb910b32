"""Load the installed library, TensorRT (10.3 and later) or TensorRT-RTX, and describe the GPU of this machine."""

from __future__ import annotations

import functools
import importlib
import re
from dataclasses import dataclass
from typing import Any

from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.errors import BackendError, MissingExtraError
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, Here

OLDEST = (10, 3)  # the version in JetPack 6
KEPT_ERRORS = 20


@dataclass(frozen=True)
class Library:
    """One of the two libraries, loaded, and the errors it logs.

    TensorRT keeps the first logger it is given for the whole process, so every object of this package shares this one.

    Args:
        trt: the library's module.
        logger: the logger passed to the library.
        errors: the most recent errors it logged, oldest first.
    """

    trt: Any
    logger: Any
    errors: list[str]

    def reason(self) -> str:
        """The errors logged since the last call, in one line; clears them."""
        found = list(dict.fromkeys(self.errors))
        self.errors.clear()
        return "; ".join(found)[:1500] or "it gives no reason"


def open_library(backend: str) -> Library:
    """Load the library of a backend.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingExtraError: the library is not installed.
        BackendError: the library cannot be loaded or is too old, or there is no such backend.
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
    return _logged(trt)


@functools.cache
def _logged(trt: Any) -> Library:
    errors: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]  # the library is loaded on demand and has no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                errors.append(" ".join(message.split()))
                del errors[:-KEPT_ERRORS]

    return Library(trt, Logger(), errors)


def here_of(backend: str) -> Here:
    """A backend's library, and the first GPU of this machine if there is one.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        MissingExtraError: the library, or cuda-bindings, is not installed.
        BackendError: the library cannot be loaded or is too old, or there is no such backend.
    """
    library = open_library(backend)
    return Here(LIBRARIES[backend], library.trt.__version__, *_gpu())


def _gpu() -> tuple[str | None, str | None]:
    """The GPU's compute capability and the newest CUDA version its driver supports; None without a driver or a GPU."""
    try:
        found = cuda.gpu()
    except MissingExtraError:
        raise
    except BackendError:
        return None, None
    return found.compute_capability, f"CUDA {found.driver_version}"
