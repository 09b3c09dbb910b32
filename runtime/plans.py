"""Built TensorRT engines beside a bundle: what is recorded of each, and which one fits. Nothing here imports an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camp_sdk.runtime.bundle import Bundle, GraphSpec, Manifest
from camp_sdk.runtime.errors import BackendError

Shape = tuple[int, ...]
Profile = dict[str, tuple[Shape, Shape, Shape]]  # smallest, usual and largest shape of each input


@dataclass(frozen=True)
class Limits:
    """The largest sizes an engine is built for, and the bytes its builder may use."""

    max_images: int = 256
    max_texts: int = 256
    max_words: int = 64
    max_regions: int = 64
    workspace_bytes: int = 1 << 30


@dataclass(frozen=True)
class PlanRecord:
    """What stands in engine.json, as far as running needs it."""

    library: str
    graph: str
    precision: str
    profile: Profile


@dataclass(frozen=True)
class Here:
    """What a plan must fit: library, its version, and the device's compute capability."""

    library: str
    version: str
    compute_capability: str | None


def profile_of(spec: GraphSpec, manifest: Manifest, limits: Limits) -> Profile:
    """Smallest, usual and largest shape of every input of a graph."""
    largest = {"I": limits.max_images, "T": limits.max_texts, "N": limits.max_words, "R": limits.max_regions, "B": 64}

    def shape(sizes: tuple[int | str, ...], share: int) -> Shape:
        return tuple(s if isinstance(s, int) else max(1, largest[s] // share) for s in sizes)

    return {
        i.name: (tuple(s if isinstance(s, int) else 1 for s in i.shape), shape(i.shape, 4), shape(i.shape, 1))
        for i in spec.inputs
    }


def find_plan(bundle: Bundle, graph: str, precision: str, here: Here) -> tuple[Path, PlanRecord]:
    """The plan of a graph that fits this machine. Raises BackendError saying which thing differs."""
    raise BackendError(f"no {here.library} engine was built for {graph} in {precision}: run camp build {bundle.folder}")
