"""Build the parts of an index: one after another in this process, or at the same time on a cluster of Ray."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from camp_sdk.arguments import Advance, silent
from camp_sdk.cluster.encoding import Encoder, PartJob, Progress, encode_part
from camp_sdk.cluster.parts import Parts, make_parts
from camp_sdk.cluster.sources import Source
from camp_sdk.results import Skipped
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BackendError, CampError, InputError, MissingExtraError

LOCAL = "local"
RESTARTS = 3  # of a part whose process was lost


@dataclass(frozen=True)
class Cluster:
    """Where parts are encoded.

    Args:
        address: The address of a cluster of Ray; "local" starts one on this machine, "auto" finds one.
        cpus: The cores of a process, each of which encodes one part at a time.
        gpus: The GPUs of a process; a fraction shares them.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class Built:
    """What `build_parts` did.

    Args:
        parts: The folder of the parts.
        encoded: Pictures that were encoded.
        unchanged: Pictures that were there already.
        skipped: Pictures that cannot be read; ``name`` is the key, ``index`` the position in its part.
        restarts: How often a process was lost and another one went on.
    """

    parts: Parts
    encoded: int
    unchanged: int
    skipped: tuple[Skipped, ...]
    restarts: int


def build_parts(
    folder: Path,
    sources: Sequence[Source],
    encoder: Encoder,
    count: int | None = None,
    cluster: Cluster | None = None,
    on_progress: Advance = silent,
) -> Built:
    """Encode a corpus into a folder of indexes.

    Each part is an index of its own, which one process writes and commits to as it goes. If this is killed, the same
    call goes on where it was, and the result is that of a call that was not.

    Args:
        folder: The folder of the parts, which every process of the cluster must reach under this path.
        sources: The pictures.
        encoder: How they are encoded; its bundle must be reached under its path likewise.
        count: The number of parts; None for that of a folder that is there.
        cluster: Where; None for this process.
        on_progress: Receives the number of pictures that were done.

    Raises:
        InputError: The folder has another number of parts, or the cluster has too few cores.
        BundleError: Another bundle encoded the parts.
        BackendError: The cluster cannot be reached, or processes are lost again and again.
        MissingExtraError: Ray is not installed.
        OSError: A part cannot be written.
    """
    parts = make_parts(folder, count, Bundle(encoder.bundle).fingerprint)
    jobs = _jobs(parts, sources, encoder)
    totals, skipped = Counter[str](), list[Skipped]()
    for done in _here(jobs) if cluster is None else _on_ray(jobs, cluster):
        if done is None:
            totals["restarts"] += 1
            continue
        totals.update(encoded=done.encoded, unchanged=done.unchanged)
        skipped += done.skipped
        on_progress(done.items)
    by_key = {one.name: one for one in skipped}  # a part that was begun again reports some twice
    return Built(parts, totals["encoded"], totals["unchanged"], tuple(by_key.values()), totals["restarts"])


def _jobs(parts: Parts, sources: Sequence[Source], encoder: Encoder) -> list[PartJob]:
    divided: list[list[Source]] = [[] for _ in range(parts.count)]
    for source in sources:
        divided[parts.part_of(source.key)].append(source)
    return [
        PartJob(number, path, some, encoder)
        for number, (path, some) in enumerate(zip(parts.paths, divided, strict=True))
    ]


def _here(jobs: Sequence[PartJob]) -> Iterator[Progress]:
    for job in jobs:
        yield from encode_part(job)


def _on_ray(jobs: Sequence[PartJob], cluster: Cluster) -> Iterator[Progress | None]:
    """What was done, in the order in which it is reported; None whenever a process was lost."""
    ray = import_ray()
    own = connect(ray, cluster)
    try:
        yield from _run_all(ray, jobs, cluster)
    finally:
        if own:
            ray.shutdown()


def _run_all(ray: ModuleType, jobs: Sequence[PartJob], cluster: Cluster) -> Iterator[Progress | None]:
    # Ray would repeat what a lost task has reported: it is begun again here, where it goes on.
    task = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=0)(encode_part)
    task = task.options(num_returns="streaming")
    running = {task.remote(job): job for job in jobs}
    lost = Counter[int]()
    while running:
        (stream,), _ = ray.wait(list(running), num_returns=1, fetch_local=False)
        try:
            yield ray.get(next(stream))
        except StopIteration:
            del running[stream]
        except ray.exceptions.RayTaskError as error:
            raise _cause_of(error) from None
        except ray.exceptions.RayError as error:  # the process, or its machine, is gone
            job = running.pop(stream)
            lost[job.part] += 1
            if lost[job.part] > RESTARTS:
                raise BackendError(
                    f"the process of part {job.part} was lost {lost[job.part]} times ({type(error).__name__}): run "
                    "this again with fewer parts at a time, or more memory for each"
                ) from None
            running[task.remote(job)] = job
            yield None


def import_ray() -> ModuleType:
    """The package ray.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a corpus leaves the cluster
    try:
        import ray
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    return ray


def connect(ray: ModuleType, cluster: Cluster) -> bool:
    """Connect to a cluster, unless this process is connected already.

    Args:
        ray: The package.
        cluster: The cluster.

    Returns:
        Whether it was not connected.

    Raises:
        InputError: The cluster has too few cores.
        BackendError: It cannot be reached.
    """
    own = not ray.is_initialized()
    if own:
        options: dict[str, Any] = {"include_dashboard": False} if cluster.address == LOCAL else {}
        try:
            ray.init(cluster.address, logging_level="ERROR", log_to_driver=False, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BackendError(f"no cluster of Ray at {cluster.address}: {error}") from None
    cores = ray.cluster_resources().get("CPU", 0)
    if cluster.cpus > cores:
        raise InputError(f"`cpus` is {cluster.cpus}, and the cluster has {cores:g}: a process could never begin")
    return own


def _cause_of(error: Any) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, (CampError, OSError)) else BackendError(f"a process failed: {error}")
