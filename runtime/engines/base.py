"""The face that every inference library has here: ``run(feeds) -> outputs``, ``close()``, and a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from numpy.typing import NDArray

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, GraphSpec

Arrays = dict[str, NDArray[Any]]
Interface = dict[str, tuple[str, tuple[Any, ...]]]  # dtype and shape by name; an axis of any size is no number


class Engine(ABC):
    """What every backend offers: named numpy arrays in, named numpy arrays out; a context manager that closes it.

    blocks: how many images and texts it likes to score in one call; None is what fits a processor's caches.
    block_bytes: where `blocks` is None, how large the float32 vectors of a call's pairs may be. Intermediates are a few arrays
    as large: smaller ones stay nearer to the processor, larger ones read the weights less often.
    streams: how many runs of one caller it computes side by side; a single run then takes a part of the cores only.
    callers: how many threads should call `run` to keep the streams busy.
    residents: of an engine with device memory, what it holds there of images, by the images on the host; forgotten when
    those are, or when it is closed.
    """

    blocks: tuple[int, int] | None = None
    block_bytes: int = 8 << 20
    streams: int = 1
    callers: int = 1
    residents: WeakKeyDictionary[Any, Any]

    @abstractmethod
    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        """Run the graph once: every input by name, every output by name. Inputs are arrays, or what `hold` gave of them."""

    def hold(self, tensors: Arrays) -> Mapping[str, Any]:
        """Inputs of this graph where the engine wants them, for many runs: in device memory if it has its own.

        Each can be sliced along axis 0 without a copy, and fed to `run`. Other tensors are returned as they came.
        """
        return tensors

    def room_bytes(self) -> int | None:
        """Bytes of device memory that `hold` may take; None if it takes none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free what the engine holds; it cannot run again."""

    @abstractmethod
    def interface(self) -> tuple[Interface, Interface]:
        """Inputs and outputs as the graph's file declares them."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_contract(engine: Engine, graph: GraphSpec) -> None:
    """Raise BundleError unless a file's inputs and outputs are those the manifest lists: names, dtypes, fixed sizes."""
    for kind, specs, found in zip(("input", "output"), (graph.inputs, graph.outputs), engine.interface(), strict=True):
        expected: Interface = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        if found.keys() != expected.keys() or not all(_fits(expected[name], found[name]) for name in expected):
            raise BundleError(f"{graph.file} has the {kind}s {found}, manifest.json says {expected}; {EXPORT_AGAIN}")


def _fits(expected: tuple[str, tuple[Any, ...]], found: tuple[str, tuple[Any, ...]]) -> bool:
    """Whether dtype, number of axes and fixed sizes are the same; an axis of any size has no number on either side."""
    (dtype, shape), (found_dtype, found_shape) = expected, found
    if dtype != found_dtype or len(shape) != len(found_shape):
        return False
    return all(size == other for size, other in zip(shape, found_shape, strict=True) if isinstance(size, int))
