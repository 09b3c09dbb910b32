"""Plans on disk: which engines a bundle holds, what each was built for, and whether one fits here. No library is loaded.

An engine is a folder, engines/<key>, with engine.plan and, beside it, a record of what it was built from and for. A foreign
plan can crash the process that opens it, so the record is read first, and the plan's hash is checked before anything else
touches the plan. Axis letters as in bundle.py.
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
from camp_sdk.runtime.engines.profiles import AXIS_LIMIT, BYTES_LIMIT, Profile, Shape, fits_contract
from camp_sdk.runtime.errors import BackendError, BundleError
from camp_sdk.runtime.files import cache_folder, sha256_of
from camp_sdk.runtime.manifest import GraphSpec

FORMAT = 1
ENGINES = "engines"  # the folder of a bundle that camp build writes to
PLAN_FILE, RECORD_FILE = "engine.plan", "engine.json"
RECORD_BYTES_LIMIT = 1 << 20
LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # the module of each backend
RTX_OLDEST = 8.0  # what a portable plan of TensorRT-RTX runs on: compute capability 8.0 and later


@dataclass(frozen=True)
class Here:
    """The library that builds or opens engines on this machine, and its GPU.

    ``library`` is the module, "tensorrt" or "tensorrt_rtx"; ``compute_capability`` as in "8.7", None without a GPU.
    """

    library: str
    version: str
    compute_capability: str | None
    driver: str | None = None

    @property
    def target(self) -> str | None:
        """The compute capability that engines built here are for; None for portable ones, which TensorRT-RTX builds unless
        the GPU is too old for them."""
        portable = self.library == "tensorrt_rtx" and not _is_too_old(self.compute_capability)
        return None if portable else self.compute_capability

    @property
    def backend(self) -> str:
        """The backend's name, as commands take it."""
        return self.library.replace("_", "-")


@dataclass(frozen=True)
class PlanRecord:
    """What engine.json says of the plan beside it.

    ``compute_capability`` None: portable, as TensorRT-RTX builds them, for every GPU of 8.0 and later. ``half_share``: how
    many of the matrix products and convolutions compute in half precision, 0..1. ``built_at``: seconds since 1970.
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
    half_share: float
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
    """What names the folder of an engine built here: 16 hexadecimal digits of a hash over all that decides if it fits."""
    parts = [here.library, here.version, here.target, graph_sha256, sorted(profile.items()), precision]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def read_record(folder: Path) -> PlanRecord:
    """The record of an engine's folder. Raises BundleError if there is none, or one that is broken or was altered."""
    path = folder / RECORD_FILE
    if not path.is_file() or path.resolve().parent != folder.resolve():
        raise BundleError(f"{path} is missing, or not a file of the bundle")
    with path.open("rb") as file:
        text = file.read(RECORD_BYTES_LIMIT + 1)
    if len(text) > RECORD_BYTES_LIMIT:
        raise BundleError(f"{path} has more than {RECORD_BYTES_LIMIT} bytes: more than a record can have")
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
    numbers = {name: _number(raw[name]) for name in ("half_share", "build_s", "built_at")}
    profile = {_text(name): _parse_shapes(shapes) for name, shapes in raw["profile"].items()}
    return PlanRecord(**texts, **hashes, **options, **numbers, profile=profile, plan_bytes=_size(raw["plan_bytes"]))  # type: ignore[arg-type]  # each name holds its type


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
    """Every folder of engines/ that lies in the bundle, in order of name; none where nothing was built."""
    engines, inside = bundle_folder / ENGINES, bundle_folder.resolve() / ENGINES
    if engines.is_dir() and engines.resolve() == inside:
        folders = (path for path in engines.iterdir() if path.is_dir() and not path.name.startswith("."))
        yield from sorted(path for path in folders if path.resolve().parent == inside)


def engine_files(bundle_folder: Path) -> list[str]:
    """The files that building engines leaves in a bundle, as paths relative to it."""
    folders = engine_folders(bundle_folder)
    return [f"{ENGINES}/{folder.name}/{name}" for folder in folders for name in (PLAN_FILE, RECORD_FILE)]


def read_records(bundle_folder: Path) -> tuple[list[tuple[Path, PlanRecord]], list[str]]:
    """The engines of a bundle, folder and record, the last built first; and why each broken record was left out."""
    records, broken = [], []
    for folder in engine_folders(bundle_folder):
        try:
            records.append((folder, read_record(folder)))
        except (BundleError, OSError) as error:
            broken.append(str(error))
    return sorted(records, key=lambda found: found[1].built_at, reverse=True), broken


def graph_of(bundle: Bundle, graph: str, precision: str) -> tuple[GraphSpec, str]:
    """A graph as a precision has it, and what it really computes in: float32 where the precision has none of its own.

    Raises BundleError if the bundle has no such graph or precision.
    """
    graphs = bundle.manifest.graphs_in(precision)
    if graph not in graphs:
        raise BundleError(f"{bundle.folder} has no {graph} graph; it has {', '.join(graphs)}")
    lowered = bundle.manifest.precisions.get(precision)
    return graphs[graph], precision if lowered and graph in lowered.graphs else "float32"


def was_built(bundle: Bundle, graph: str, precision: str, backend: str) -> bool:
    """Whether the bundle holds an engine of a graph, for whatever GPU and of whatever version."""
    what = (graph, graph_of(bundle, graph, precision)[1], LIBRARIES[backend])
    return any((record.graph, record.precision, record.library) == what for _, record in read_records(bundle.folder)[0])


def _built_path(plan_sha256: str) -> Path:
    return cache_folder() / "plans" / plan_sha256


def remember_built(record: PlanRecord) -> None:
    """Note that this user built a plan. Where the note cannot be kept, the plan has to be asked for by name."""
    with contextlib.suppress(OSError):
        path = _built_path(record.plan_sha256)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch()


def was_built_here(record: PlanRecord) -> bool:
    """Whether this user built the plan of a record, whose hash has been checked: a bundle may bring any plan along."""
    try:
        return _built_path(record.plan_sha256).is_file()
    except OSError:
        return False


def find_plan(bundle: Bundle, graph: str, precision: str, here: Here) -> tuple[Path, PlanRecord]:
    """The plan to open for a graph here, the last built of those that fit, with its size and SHA-256 checked.

    Raises BackendError if there is none, or that one was altered: in one line what differs, and what to type.
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
    """Whether a record's sizes are some that its graph has, if it is a record of that graph."""
    return record.graph != graph or fits_contract(record.profile, spec)


def _build_again(bundle: Bundle, graph: str, precision: str, here: Here) -> str:
    folder = shlex.quote(str(bundle.folder))
    return f"build it with: camp build {folder} --backend {here.backend} --precision {precision} --graph {graph}"


def misfit(record: PlanRecord, graph_sha256: str, here: Here) -> str | None:
    """What of a record does not fit this machine and a graph, None if it fits. What a new export changes comes last: that is
    repaired everywhere."""
    if not _runs_on(record, here.compute_capability):
        built_for = record.compute_capability or "8.0 and later"
        return f"it was built for GPUs of compute capability {built_for}, this machine has {here.compute_capability or 'none'}"
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
    return compute_capability is not None and float(compute_capability) < RTX_OLDEST


def check_plan(folder: Path, record: PlanRecord) -> Path:
    """The path of the plan beside a record, whole. Raises BackendError if it is missing, altered or no file of the bundle."""
    path = folder / PLAN_FILE
    if not path.is_file() or path.resolve().parent != path.parent.resolve():
        raise BackendError(
            f"{path} is missing, or not a file of the bundle; build it again by camp build, with --force"
        )
    if path.stat().st_size != record.plan_bytes:
        sizes = f"{path.stat().st_size} bytes, its record says {record.plan_bytes}"
        raise BackendError(f"{path} has {sizes}; build it again by camp build, with --force")
    if sha256_of(path) != record.plan_sha256:
        raise BackendError(
            f"{path} was altered: its SHA-256 is not that of its record; build it again by camp build, with --force"
        )
    return path
