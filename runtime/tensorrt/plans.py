"""Plans on disk: which engines a bundle holds, what each was built for, and whether one fits this machine.

An engine is a folder, engines/<key>, that holds engine.plan and engine.json, a record of what the plan was built from
and for. A foreign plan can crash the process that opens it. So the record is read first, and the plan's hash is
checked before anything else reads the plan. No inference library is loaded here. Axis letters are those of
manifest.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.profiles import AXIS_LIMIT, BYTES_LIMIT, Profile, Shape, fits_contract
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.files import HeldFile, cache_folder
from camp_sdk.runtime.lowered import FLOAT8

FORMAT = 2
ENGINES = "engines"  # the folder of a bundle that camp build writes to
PLAN_FILE, RECORD_FILE = "engine.plan", "engine.json"
RECORD_BYTES_LIMIT = 1 << 20
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # Python module by backend
FLOAT8_MIN_CAPABILITY = 8.9
RTX_MIN_CAPABILITY = 8.0  # portable plans of TensorRT-RTX run on compute capability 8.0 and later


@dataclass(frozen=True)
class Here:
    """The library that builds or opens engines on this machine, and the machine's GPU.

    Args:
        library: the library's Python module, "tensorrt" or "tensorrt_rtx".
        version: the library's version.
        compute_capability: of the GPU, for example "8.7"; None without a GPU.
        driver: the newest CUDA version that the driver supports, for example "CUDA 13.0"; None without a driver.
    """

    library: str
    version: str
    compute_capability: str | None
    driver: str | None = None

    @property
    def target(self) -> str | None:
        """The compute capability that engines built here are for; None if they are portable.

        TensorRT-RTX builds portable engines, unless the GPU is too old for them.
        """
        portable = self.library == "tensorrt_rtx" and not _is_too_old(self.compute_capability)
        return None if portable else self.compute_capability

    @property
    def backend(self) -> str:
        """The backend's name, as the commands expect it."""
        return self.library.replace("_", "-")


@dataclass(frozen=True)
class PlanRecord:
    """The content of engine.json, which describes the plan beside it.

    Args:
        library: the Python module of the library that built the plan, "tensorrt" or "tensorrt_rtx".
        library_version: the library's version.
        compute_capability: the compute capability the plan was built for, for example "8.7"; None for a portable plan
            of TensorRT-RTX, which runs on every GPU of 8.0 and later.
        driver: the newest CUDA version that the driver supported when the plan was built; None without a driver.
        graph: the graph's name.
        precision: the precision the graph computes in.
        graph_sha256: SHA-256 of the graph's file, in hexadecimal.
        profile: the smallest, expected and largest shape of each input.
        plan_sha256: SHA-256 of the plan, in hexadecimal.
        plan_bytes: size of the plan.
        low_share: the share of matrix products and convolutions that compute in the graph's precision, 0..1; 0 in
            float32.
        build_s: how long the build took, in seconds.
        built_at: when the plan was built, in seconds since 1970.
    """

    library: str
    library_version: str
    compute_capability: str | None
    driver: str | None
    graph: str
    precision: str
    graph_sha256: str
    profile: Profile
    plan_sha256: str
    plan_bytes: int
    low_share: float
    build_s: float
    built_at: float

    @property
    def key(self) -> str:
        """The name of the engine's folder."""
        here = Here(self.library, self.library_version, self.compute_capability)
        return engine_key(here, self.graph_sha256, self.profile, self.precision)

    def as_json(self) -> str:
        """The text of engine.json."""
        profile = {
            name: dict(zip(("min", "opt", "max"), map(list, shapes), strict=True))
            for name, shapes in self.profile.items()
        }
        return json.dumps({"format": FORMAT, **asdict(self), "profile": profile}, indent=2) + "\n"


def engine_key(here: Here, graph_sha256: str, profile: Profile, precision: str) -> str:
    """The folder name of an engine built here: 16 hexadecimal digits of a hash of all that decides whether it fits.

    Args:
        here: the library and the GPU.
        graph_sha256: SHA-256 of the graph's file, in hexadecimal.
        profile: the shapes the engine is built for.
        precision: the precision the graph computes in.
    """
    parts = [here.library, here.version, here.target, graph_sha256, sorted(profile.items()), precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_record(folder: Path) -> PlanRecord:
    """Read the record in an engine's folder.

    Raises:
        BundleError: the record is missing, broken, or does not match the name of its folder.
    """
    path = folder / RECORD_FILE
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise BundleError(f"{path} is missing, or not a file of the bundle")
    with path.open("rb") as file:
        text = file.read(RECORD_BYTES_LIMIT + 1)
    if len(text) > RECORD_BYTES_LIMIT:
        raise BundleError(f"{path} has more than {RECORD_BYTES_LIMIT} bytes, the limit of a record")
    try:
        record = _parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BundleError(
            f"{path} is not the record of an engine ({type(error).__name__}: {str(error)[:200]})"
        ) from None
    if record.key != folder.name:
        raise BundleError(f"{path} was altered: it belongs to a folder named {record.key}")
    return record


def _parse(raw: Any) -> PlanRecord:
    if raw["format"] != FORMAT:
        raise ValueError(f"format {raw['format']!r}, expected {FORMAT}")
    texts = {name: _text(raw[name]) for name in ("library", "library_version", "graph", "precision")}
    hashes = {name: _hash(raw[name]) for name in ("graph_sha256", "plan_sha256")}
    options = {name: None if raw[name] is None else _text(raw[name]) for name in ("compute_capability", "driver")}
    numbers = {name: _number(raw[name]) for name in ("low_share", "build_s", "built_at")}
    profile = {_text(name): _parse_shapes(shapes) for name, shapes in raw["profile"].items()}
    fields: dict[str, Any] = {**texts, **hashes, **options, **numbers}
    return PlanRecord(**fields, profile=profile, plan_bytes=_size(raw["plan_bytes"]))


def _text(value: Any) -> str:
    if type(value) is not str or len(value) > 200 or not value.isprintable():
        raise ValueError(f"{str(value)[:100]!r}, expected a text of at most 200 characters")
    return value


def _hash(value: Any) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text := _text(value)):
        raise ValueError(f"{text[:100]!r}, expected a SHA-256 in hexadecimal")
    return text


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise ValueError(f"{str(value)[:100]}, expected a number of at least 0")
    return float(value)


def _size(value: Any, limit: int = BYTES_LIMIT) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise ValueError(f"{str(value)[:100]}, expected a whole number of at least 1")
    return value


def _parse_shapes(raw: Any) -> tuple[Shape, Shape, Shape]:
    smallest, expected, largest = (
        tuple(_size(size, AXIS_LIMIT) for size in raw[point]) for point in ("min", "opt", "max")
    )
    if not all(a <= b <= c for a, b, c in zip(smallest, expected, largest, strict=True)):
        raise ValueError(f"shapes {smallest}, {expected}, {largest}, expected them in order of size")
    return smallest, expected, largest


def engine_folders(bundle_folder: Path) -> Iterator[Path]:
    """The folders in a bundle's engines/, sorted by name; skips hidden ones, and links that lead out of the bundle."""
    engines, inside = bundle_folder / ENGINES, bundle_folder.resolve() / ENGINES
    if engines.is_dir() and engines.resolve() == inside:
        folders = (path for path in engines.iterdir() if path.is_dir() and not path.name.startswith("."))
        yield from sorted(path for path in folders if path.resolve().parent == inside)


def engine_files(bundle_folder: Path) -> list[str]:
    """The files that builds of engines have added to a bundle, as paths relative to it."""
    folders = engine_folders(bundle_folder)
    return [f"{ENGINES}/{folder.name}/{name}" for folder in folders for name in (PLAN_FILE, RECORD_FILE)]


def read_records(bundle_folder: Path) -> tuple[list[tuple[Path, PlanRecord]], list[str]]:
    """Read the records of all engines in a bundle.

    Returns:
        (folder, record) of each engine, the most recently built first; and one line for each record that cannot be
        read, with the reason.
    """
    records, broken = [], []
    for folder in engine_folders(bundle_folder):
        try:
            records.append((folder, read_record(folder)))
        except (BundleError, OSError) as error:
            broken.append(str(error))
    return sorted(records, key=lambda found: found[1].built_at, reverse=True), broken


def graph_of(bundle: Bundle, graph: str, precision: str) -> tuple[GraphSpec, str]:
    """The version of a graph that is used in a precision, and the precision that version computes in.

    Args:
        bundle: the bundle that holds the graph.
        graph: the graph's name.
        precision: any precision of the bundle; where it has no version of this graph, the float32 one is used.

    Raises:
        BundleError: the bundle has no such graph or precision.
    """
    graphs = bundle.manifest.graphs_in(precision)
    if graph not in graphs:
        raise BundleError(f"{bundle.folder} has no {graph} graph; it has {', '.join(graphs)}")
    lowered = bundle.manifest.precisions.get(precision)
    return graphs[graph], precision if lowered and graph in lowered.graphs else "float32"


def was_built(bundle: Bundle, graph: str, precision: str, backend: str) -> bool:
    """Whether the bundle holds an engine of a graph, for any GPU and of any library version.

    Args:
        bundle: the bundle that holds the engines.
        graph: the graph's name.
        precision: "float32", "float16", "bfloat16", "int8" or "float8".
        backend: "tensorrt" or "tensorrt-rtx".

    Raises:
        BundleError: the bundle has no such graph or precision.
    """
    what = (graph, graph_of(bundle, graph, precision)[1], LIBRARIES[backend])
    return any((record.graph, record.precision, record.library) == what for _, record in read_records(bundle.folder)[0])


def _built_path(plan_sha256: str) -> Path:
    return cache_folder() / "plans" / plan_sha256


def remember_built(record: PlanRecord) -> None:
    """Record in the cache folder that this user built a plan.

    A failure to write is ignored; "auto" then does not choose the plan, and the backend must be requested by name.
    """
    with contextlib.suppress(OSError):
        path = _built_path(record.plan_sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()


def was_built_here(record: PlanRecord) -> bool:
    """Whether this user built a plan, since a bundle may contain plans from anywhere.

    Args:
        record: the record of a plan whose hash has been checked.
    """
    try:
        return _built_path(record.plan_sha256).is_file()
    except OSError:
        return False


def find_plan(bundle: Bundle, graph: str, precision: str, here: Here) -> tuple[HeldFile, PlanRecord]:
    """Find the plan to open for a graph on this machine: the most recently built one that fits.

    Args:
        bundle: the bundle that holds the engines.
        graph: the graph's name.
        precision: "float32", "float16", "bfloat16", "int8" or "float8".
        here: the library and the GPU of this machine.

    Returns:
        The plan, whose size and SHA-256 have been checked, and its record.

    Raises:
        BackendError: no plan fits, or the plan that fits was altered; the message is one line with the difference and
            the command to run.
        BundleError: the bundle has no such graph or precision.
    """
    spec, precision = graph_of(bundle, graph, precision)
    graph_sha256 = bundle.manifest.files[spec.file].sha256
    records, broken = read_records(bundle.folder)
    broken += [f"{f / RECORD_FILE} has other inputs than its graph" for f, r in records if not _is_of(r, graph, spec)]
    records = [(folder, record) for folder, record in records if _is_of(record, graph, spec)]
    named = [found for found in records if (found[1].graph, found[1].precision) == (graph, precision)]
    built = [found for found in named if found[1].library == here.library]
    differing = {folder: misfit(record, graph_sha256, here) for folder, record in built}
    for folder, record in built:
        if differing[folder] is None:
            return check_plan(folder, record), record
    what = f"{here.backend} engine of the {precision} {graph} graph"
    reason = next(iter(differing.values()), None) or "none was built"
    if broken and not built:
        reason = f"none was built, or its record is broken: {broken[0]}"
    raise BackendError(
        f"{bundle.folder} has no {what} for here: {reason}; {_build_again(bundle, graph, precision, here)}"
    )


def _is_of(record: PlanRecord, graph: str, spec: GraphSpec) -> bool:
    """Whether a record's profile matches the inputs of the graph; true for records of other graphs."""
    return record.graph != graph or fits_contract(record.profile, spec)


def _build_again(bundle: Bundle, graph: str, precision: str, here: Here) -> str:
    folder = shlex.quote(str(bundle.folder))
    return f"build it with: camp build {folder} --backend {here.backend} --precision {precision} --graph {graph}"


def misfit(record: PlanRecord, graph_sha256: str, here: Here) -> str | None:
    """The reason why an engine does not fit this machine or a graph; None if it fits.

    A changed graph is reported last, because an engine can be rebuilt for it on any machine.

    Args:
        record: the engine's record.
        graph_sha256: SHA-256 of the bundle's graph, in hexadecimal.
        here: the library and the GPU of this machine.
    """
    mine = here.compute_capability
    if record.precision == FLOAT8 and mine is not None and float(mine) < FLOAT8_MIN_CAPABILITY:
        return f"float8 needs a GPU of compute capability {FLOAT8_MIN_CAPABILITY} or later, this machine has {mine}"
    if not _runs_on(record, mine):
        built_for = record.compute_capability or "8.0 and later"
        found = mine or "none"
        return f"it was built for GPUs of compute capability {built_for}, this machine has {found}"
    if record.library_version != here.version:
        return f"it was built by version {record.library_version}, this machine has version {here.version}"
    if record.graph_sha256 != graph_sha256:
        found, expected = record.graph_sha256[:12], graph_sha256[:12]
        return f"it was built from another graph, of SHA-256 {found}..., the bundle's has {expected}..."
    return None


def _runs_on(record: PlanRecord, compute_capability: str | None) -> bool:
    if record.compute_capability is not None or compute_capability is None:
        return record.compute_capability is not None and record.compute_capability == compute_capability
    return record.library == "tensorrt_rtx" and not _is_too_old(compute_capability)


def _is_too_old(compute_capability: str | None) -> bool:
    return compute_capability is not None and float(compute_capability) < RTX_MIN_CAPABILITY


def check_plan(folder: Path, record: PlanRecord) -> HeldFile:
    """Check the size and SHA-256 of the plan beside a record.

    Args:
        folder: the engine's folder.
        record: the engine's record.

    Returns:
        The plan, held open.

    Raises:
        BackendError: the plan is missing, altered, or a link to a file elsewhere.
    """
    path = folder / PLAN_FILE
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise BackendError(f"{path} is missing, or not a file of the bundle; rebuild it with camp build --force")
    plan = HeldFile(path)
    if plan.nbytes != record.plan_bytes:
        sizes = f"{plan.nbytes} bytes, its record says {record.plan_bytes}"
        raise BackendError(f"{path} has {sizes}; rebuild it with camp build --force")
    if plan.sha256 != record.plan_sha256:
        raise BackendError(
            f"{path} was altered: its SHA-256 is not the one in its record; rebuild it with camp build --force"
        )
    return plan
