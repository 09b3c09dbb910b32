"""What works on this machine: the GPU, every backend, and a bundle's engines, inputs and self-tests.

Nothing here raises for something missing or broken: that is what the diagnosis reports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from camp_sdk.first_pass_speed import FirstPassState, first_pass_states
from camp_sdk.pictures import normalise, read_picture
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.backends import BACKENDS, DEVICES, PRECISIONS, SCORES_IN, library_version
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.engines.onnxruntime_engine import check_provider
from camp_sdk.runtime.engines.openvino_engine import import_openvino
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.golden import GOLDEN_FILE, Golden, read_golden
from camp_sdk.runtime.lowered import COARSE
from camp_sdk.runtime.manifest import EXPORT_AGAIN
from camp_sdk.runtime.selftest import ON_PROCESSOR, SelfTest, check_caption, run_and_remember, self_test
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tensorrt.plans import LIBRARIES, PlanRecord, check_plan, graph_of, misfit, read_records

T = TypeVar("T")
DEFAULT = "float32"
AUTO_ORDER = (*LIBRARIES, "onnxruntime-cuda", "openvino", "onnxruntime")
PROBLEM_CHARACTERS = 600
PICTURE_STEPS = 1.01  # of 255; the rest is the rounding of normalised values


@dataclass(frozen=True)
class BackendState:
    """The state of one backend.

    Args:
        backend: Its name.
        version: The version of its library; None if the library cannot be loaded.
        problem: Why it does not open; empty if it does.
    """

    backend: str
    version: str | None
    problem: str


@dataclass(frozen=True)
class EngineState:
    """The state of one engine on disk.

    Args:
        folder: The engine's folder.
        backend: The backend that runs it.
        library_version: The version of the library that built it.
        graph: The graph that it runs.
        precision: The precision that it was built in.
        plan_bytes: Its size.
        problem: Why it cannot be used here; empty if it fits.
    """

    folder: str
    backend: str
    library_version: str
    graph: str
    precision: str
    plan_bytes: int
    problem: str


@dataclass(frozen=True)
class SelfTestState:
    """The result of the self-test on one backend in one precision.

    Args:
        backend: The backend.
        precision: The precision.
        passed: Whether the test passed.
        max_logit_error: The largest difference from PyTorch's logits; None if not measured, NaN or infinite.
        max_score_error: The same for the scores.
        skipped: Why the test does not apply to this backend, which is not a failure; empty if it ran.
        problem: What failed; empty if the test passed.
    """

    backend: str
    precision: str
    passed: bool
    max_logit_error: float | None
    max_score_error: float | None
    skipped: str
    problem: str


@dataclass(frozen=True)
class InputState:
    """Whether a golden example becomes the network's input as it did at the export.

    Args:
        name: "caption", which becomes tokens, or "picture", which becomes pixels.
        problem: What differs; empty if nothing does.
    """

    name: str
    problem: str


@dataclass(frozen=True)
class Choice:
    """The backend that "auto" chooses in one precision.

    Args:
        precision: The precision.
        backend: The backend chosen; None if none works.
        problem: Why the backend chosen, or every backend, does not work; empty if it works.
        passed_over: Why each backend that "auto" prefers was not chosen, by backend.
    """

    precision: str
    backend: str | None
    problem: str
    passed_over: dict[str, str]


@dataclass(frozen=True)
class BundleState:
    """The state of a bundle on this machine.

    Args:
        folder: The bundle's folder.
        problem: Why it cannot be opened, in which case the remaining fields are empty; empty if it opens.
        variant: The network's variant.
        precisions: The precisions that it has graphs in.
        engines: Its engines on disk.
        broken_records: Why the records of engines on disk cannot be read, one line for each such record.
        inputs: The golden examples of what an app passes in; empty for bundles of older versions, which have none.
        self_tests: The self-test on every backend that opens, in every precision but int8, which has no scores of its
            own.
        first_passes: The first pass of a ranking, in every precision and on every backend that makes one.
        auto: The choice of "auto" in every precision but int8.
    """

    folder: str
    problem: str
    variant: str | None = None
    precisions: tuple[str, ...] = ()
    engines: tuple[EngineState, ...] = ()
    broken_records: tuple[str, ...] = ()
    inputs: tuple[InputState, ...] = ()
    self_tests: tuple[SelfTestState, ...] = ()
    first_passes: tuple[FirstPassState, ...] = ()
    auto: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found.

    Args:
        gpu: The GPU, or None.
        gpu_problem: Why no GPU can be used; empty if there is one.
        driver_release: The release of the NVIDIA driver, or None if none is installed.
        backends: The state of every backend.
        bundle: The state of the bundle, if one was given.
    """

    gpu: cuda.Gpu | None
    gpu_problem: str
    driver_release: str | None
    backends: tuple[BackendState, ...]
    bundle: BundleState | None

    @property
    def healthy(self) -> bool:
        """Whether "auto" and the inputs work with the bundle in float32; without a bundle, whether a backend works."""
        if self.bundle is None:
            return any(not state.problem for state in self.backends)
        if any(state.problem for state in self.bundle.inputs):
            return False
        return any(choice.precision == DEFAULT and not choice.problem for choice in self.bundle.auto)

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis as plain values, for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def diagnose(folder: Path | None = None, progress: Callable[[list[T]], Iterable[T]] = lambda items: items) -> Diagnosis:
    """Try every backend and, if a bundle is given, its engines and self-tests.

    Args:
        folder: A bundle's folder, or None.
        progress: Wraps the list of self-tests, to show progress. The results of those that use the GPU replace the
            remembered ones.
    """
    gpu, gpu_problem = _attempt(cuda.gpu)
    backends = tuple(_backend_state(backend) for backend in BACKENDS)
    state = None if folder is None else _bundle_state(folder, backends, progress)
    return Diagnosis(gpu, gpu_problem, cuda.driver_release(), backends, state)


def _attempt(step: Callable[[], T]) -> tuple[T | None, str]:
    """The result of a step and "", or None and the reason in one line."""
    try:
        return step(), ""
    except Exception as error:  # a broken installation raises whatever its import raises
        text = " ".join(str(error).split()) or type(error).__name__
        return None, text if len(text) <= PROBLEM_CHARACTERS else f"{text[:PROBLEM_CHARACTERS]}..."


def _backend_state(backend: str) -> BackendState:
    version, missing = _attempt(lambda: library_version(backend))
    return BackendState(backend, version, missing or _attempt(lambda: _check_opens(backend))[1])


def _check_opens(backend: str) -> None:
    if backend == "openvino":
        import_openvino().Core().get_property("CPU", "FULL_DEVICE_NAME")
    elif backend in LIBRARIES:
        cuda.gpu()
    else:
        check_provider(DEVICES[backend])


def _bundle_state(
    folder: Path, backends: tuple[BackendState, ...], progress: Callable[[list[Any]], Iterable[Any]]
) -> BundleState:
    bundle, problem = _attempt(lambda: Bundle(folder))
    if bundle is None:
        return BundleState(str(folder), problem)
    precisions = tuple(p for p in PRECISIONS if p == DEFAULT or p in bundle.manifest.precisions)
    own = tuple(precision for precision in precisions if precision not in COARSE)
    opening = [state.backend for state in backends if not state.problem]
    pairs = [(b, p) for p in own for b in opening if b in SCORES_IN.get(p, BACKENDS)]
    tests = tuple(_test_state(bundle, backend, precision) for backend, precision in progress(pairs))
    records, broken = read_records(folder)
    return BundleState(
        folder=str(folder),
        problem="",
        variant=bundle.manifest.variant,
        precisions=precisions,
        engines=tuple(_engine_state(bundle, *found) for found in records),
        broken_records=tuple(broken),
        inputs=_input_states(bundle),
        self_tests=tests,
        first_passes=first_pass_states(bundle, opening),
        auto=tuple(_choice(bundle, precision, backends, tests) for precision in own),
    )


def _input_states(bundle: Bundle) -> tuple[InputState, ...]:
    golden, _ = _attempt(lambda: read_golden(bundle))
    if golden is None:  # there is none, or it is broken: the self-tests report that
        return ()
    states = []
    if golden.caption is not None:
        states.append(InputState("caption", _attempt(lambda: check_caption(bundle, golden))[1]))
    if golden.picture is not None:
        states.append(InputState("picture", _attempt(lambda: check_picture(bundle, golden))[1]))
    return tuple(states)


def check_picture(bundle: Bundle, golden: Golden) -> None:
    """Check that the golden picture becomes the pixels of the export, with the Pillow that is installed here.

    Args:
        bundle: The bundle.
        golden: Its examples; without a picture, nothing is checked.

    Raises:
        BundleError: The picture cannot be read, or a value differs by more than one of 255 steps: other versions of
            Pillow may round otherwise.
    """
    spec = bundle.manifest.pixels
    if spec is None or golden.picture is None or golden.picture_pixels is None:
        return
    name = f"the picture of {GOLDEN_FILE}"
    try:
        pixels = read_picture(golden.picture.tobytes(), spec.height, spec.width, name, spec.fit)  # [H, W, 3]
    except InputError as error:
        raise BundleError(f"{error}; {EXPORT_AGAIN}") from None
    found = normalise(pixels[None], spec)[0]  # [3, H, W]
    std = np.abs(np.array(spec.std)).reshape(3, 1, 1)
    steps = float((np.abs(found.astype(np.float64) - golden.picture_pixels) * std * 255).max())
    if not steps <= PICTURE_STEPS:
        raise BundleError(
            f"{name} becomes other pixels than at the export: a value differs by {steps:.3g} of 255; install another "
            f"version of Pillow, or {EXPORT_AGAIN}"
        )


def _engine_state(bundle: Bundle, folder: Path, record: PlanRecord) -> EngineState:
    backend = record.library.replace("_", "-")

    def check() -> None:
        spec, _ = graph_of(bundle, record.graph, record.precision)
        here = here_of(backend)
        if reason := misfit(record, bundle.manifest.files[spec.file].sha256, here):
            raise ValueError(f"{reason}; build it again with: camp build" if here.compute_capability else reason)
        check_plan(folder, record)

    what = (backend, record.library_version, record.graph, record.precision, record.plan_bytes)
    return EngineState(str(folder), *what, _attempt(check)[1])


def _test_state(bundle: Bundle, backend: str, precision: str) -> SelfTestState:
    run = self_test if backend in ON_PROCESSOR else run_and_remember
    test, problem = _attempt(lambda: run(bundle, backend, precision))
    if test is None:
        return SelfTestState(backend, precision, False, None, None, "", problem)
    problem = "" if test.passed else test.figures
    return SelfTestState(backend, precision, test.passed, *_figures(test), test.skipped, problem)


def _figures(test: SelfTest) -> tuple[float | None, float | None]:
    """Differences of logits and scores; None if not measured, and for NaN and infinity, which JSON cannot hold."""
    found = (test.max_logit_error, test.max_score_error)
    logits, scores = (None if test.skipped or not math.isfinite(error) else error for error in found)
    return logits, scores


def _choice(
    bundle: Bundle, precision: str, backends: tuple[BackendState, ...], tests: tuple[SelfTestState, ...]
) -> Choice:
    def open_as_apps_do() -> str:
        with Retriever(bundle, precision=precision) as retriever:
            return retriever.backend

    chosen, problem = _attempt(open_as_apps_do)
    reasons = {state.backend: state.problem for state in backends if state.problem}
    reasons |= {test.backend: test.problem for test in tests if test.problem and test.precision == precision}
    before = AUTO_ORDER[: AUTO_ORDER.index(chosen)] if chosen else AUTO_ORDER
    able = [backend for backend in before if backend in SCORES_IN.get(precision, BACKENDS)]
    passed_over = {backend: reasons.get(backend, "auto chooses it on x86 processors only") for backend in able}
    return Choice(precision, chosen, problem or reasons.get(chosen or "", ""), passed_over)
