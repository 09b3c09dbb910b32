"""The interface shared by all inference libraries: ``run(feeds) -> outputs``, ``close()``, and a context manager."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from numpy.typing import NDArray

from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.manifest import EXPORT_AGAIN

Arrays = dict[str, NDArray[Any]]
Interface = dict[str, tuple[str, tuple[Any, ...]]]  # dtype and shape by name; an axis of variable size is not an int


class Engine(ABC):
    """Base class of all engines: named numpy arrays in, named numpy arrays out; a context manager that closes it.

    Attributes:
        contract: the graph that the outputs of every run are checked against; None for no check.
        blocks: the number of images and of texts that the engine scores best in one call; None for what fits a
            processor's caches, by `block_bytes`.
        block_bytes: where `blocks` is None, the maximum size of the float32 vectors of one call's pairs. Intermediates
            are a few arrays of that size: smaller ones stay in caches closer to the processor, larger ones need fewer
            reads of the weights.
        streams: the number of runs that the engine computes in parallel; a single run then uses only some of the cores.
        callers: the number of threads that should call `run` to keep all streams busy.
        residents: for engines with device memory, the images held there, keyed by the images on the host. An entry
            lasts until its images are garbage-collected or the engine is closed.
    """

    contract: GraphSpec | None = None
    blocks: tuple[int, int] | None = None
    block_bytes: int = 8 << 20
    streams: int = 1
    callers: int = 1
    residents: WeakKeyDictionary[Any, Any]

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        """Run the graph once.

        Args:
            feeds: every input by name, as arrays or as returned by `hold`.

        Returns:
            Every output by name.

        Raises:
            BackendError: the run failed, or the engine was closed.
            BundleError: an output does not have the shape that the contract promises for these inputs.
        """
        outputs = self._run(feeds)
        if self.contract is not None:
            check_outputs(self.contract, feeds, outputs)
        return outputs

    @abstractmethod
    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        """`run` without the check."""

    def hold(self, tensors: Arrays) -> Mapping[str, Any]:
        """Place inputs where the engine reads them fastest, for use in many runs: in device memory if it has its own.

        Args:
            tensors: arrays by name; those that are not inputs of this graph are returned unchanged.

        Returns:
            The tensors by name. Each can be sliced along axis 0 without a copy, and passed to `run`.
        """
        return tensors

    def room_bytes(self) -> int | None:
        """Bytes of device memory that `hold` may use; None if it uses none."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free the engine's resources. It cannot run again."""

    @abstractmethod
    def interface(self) -> tuple[Interface, Interface]:
        """The inputs and the outputs that the graph's file declares."""

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def closed_how(forked: bool) -> str:
    """Why an engine that has no native object left cannot run, for messages."""
    return "opened in another process, before a fork; open it in this one" if forked else "closed"


def check_contract(engine: Engine, graph: GraphSpec) -> None:
    """Check that a file's inputs and outputs match the manifest in names, dtypes and fixed sizes.

    Args:
        engine: the engine that opened the file.
        graph: the manifest's entry of the graph.

    Raises:
        BundleError: they do not match.
    """
    for kind, specs, found in zip(("input", "output"), (graph.inputs, graph.outputs), engine.interface(), strict=True):
        expected: Interface = {spec.name: (spec.dtype, spec.shape) for spec in specs}
        if found.keys() != expected.keys() or not all(_fits(expected[name], found[name]) for name in expected):
            raise BundleError(f"{graph.file} has the {kind}s {found}, manifest.json says {expected}; {EXPORT_AGAIN}")


def check_outputs(graph: GraphSpec, feeds: Mapping[str, Any], outputs: Arrays) -> None:
    """Check that outputs have the shapes of the contract: as many rows as there were items, and no other widths.

    Args:
        graph: the manifest's entry of the graph.
        feeds: the inputs of the run.
        outputs: its outputs.

    Raises:
        BundleError: an output has another shape; the message names graph, tensor, found and expected.
    """
    sizes: dict[int | str, int] = {}
    for spec in graph.inputs:
        sizes.update(zip(spec.shape, feeds[spec.name].shape, strict=True))
    for spec in graph.outputs:
        shape = outputs[spec.name].shape
        expected = tuple(sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape)
        if not _fits((spec.dtype, expected), (spec.dtype, shape)):
            raise BundleError(
                f"{graph.file} made {spec.name} {shape} of {_shapes(feeds)}, expected {expected}: the graph breaks the "
                f"contract in manifest.json; {EXPORT_AGAIN}"
            )
        # A letter that no input has, such as the regions that a vision graph makes, is the same for all outputs.
        sizes.update((axis, size) for axis, size in zip(spec.shape, shape, strict=True) if isinstance(axis, str))


def _shapes(feeds: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items())


def _fits(expected: tuple[str, tuple[Any, ...]], found: tuple[str, tuple[Any, ...]]) -> bool:
    """Whether dtype, number of axes and fixed sizes match; an axis of variable size is an int on neither side."""
    (dtype, shape), (found_dtype, found_shape) = expected, found
    if dtype != found_dtype or len(shape) != len(found_shape):
        return False
    return all(size == other for size, other in zip(shape, found_shape, strict=True) if isinstance(size, int))
