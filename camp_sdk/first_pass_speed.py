"""How much faster a first pass in few bits is on this machine, as `camp doctor` reports it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from camp_sdk.retriever import Retriever
from camp_sdk.runtime.backends import SCORES_IN, is_fast
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.encode import encode_texts
from camp_sdk.runtime.golden import GOLDEN_FILE, Golden, read_golden
from camp_sdk.runtime.lowered import FIRST_PASSES
from camp_sdk.runtime.scoring import logit_matrix
from camp_sdk.runtime.tokenizer import Tokens

IMAGES = 32  # of the golden examples, repeated
ROUNDS = 5


@dataclass(frozen=True)
class FirstPassState:
    """The first pass of a ranking on one backend in one precision.

    Args:
        precision: The precision.
        backend: The backend.
        instructions: Whether the processor has instructions for it, without which "auto" does not take it.
        speed: How many times as fast as float32 it scores the golden examples here; None if it does not run.
        problem: Why it does not run; empty if it does.
    """

    precision: str
    backend: str
    instructions: bool
    speed: float | None
    problem: str


def first_pass_states(bundle: Bundle, backends: Iterable[str]) -> tuple[FirstPassState, ...]:
    """Try the first pass in every precision that a bundle has for it.

    Args:
        bundle: The bundle.
        backends: The backends that open here.
    """
    opening = set(backends)
    pairs = [(p, b) for p in FIRST_PASSES if p in bundle.manifest.precisions for b in SCORES_IN[p] if b in opening]
    if not pairs or GOLDEN_FILE not in bundle.manifest.files:
        return ()
    return tuple(_state(bundle, precision, backend) for precision, backend in pairs)


def _state(bundle: Bundle, precision: str, backend: str) -> FirstPassState:
    fast, speed, problem = False, None, ""
    try:
        fast = is_fast(precision)
        speed = _speed(bundle, read_golden(bundle), precision, backend)
    except Exception as error:  # a broken installation raises whatever its import raises; a diagnosis reports it
        problem = " ".join(str(error).split()) or type(error).__name__
    return FirstPassState(precision, backend, fast, speed, problem)


def _speed(bundle: Bundle, golden: Golden, precision: str, backend: str) -> float:
    """The ratio of medians of both precisions, which take turns."""
    with Retriever(bundle, backend) as retriever:
        model = retriever.model
        few = golden.features[np.arange(IMAGES) % len(golden.features)]
        images = model.images_of(retriever.encode_images(few))
        texts = encode_texts(model.engines["text"], bundle, Tokens(golden.tokens, golden.lengths, (), ()))
        scorers = {name: model.scorer(name) for name in ("float32", precision)}
        times: dict[str, list[float]] = {name: [] for name in scorers}
        for _ in range(1 + ROUNDS):
            for name, scorer in scorers.items():
                start = time.perf_counter()
                logit_matrix(scorer, images, texts)
                times[name].append(time.perf_counter() - start)
        slow, quick = (statistics.median(each[1:]) for each in times.values())  # the first ones prepare the engines
        return slow / quick
