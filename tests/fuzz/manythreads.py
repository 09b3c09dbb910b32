"""One retriever in many threads: every ranking must be the one that a single thread makes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from camp_sdk import Ranking, Retriever
from tests.fuzz.bases import some_features
from tests.helpers.tiny import CAPTIONS

IMAGES = 6
MAX_DIFFERENCE = 1e-5  # engines may add in another order when others run beside them


def run_threads(bundle: Path, threads: int, rankings: int) -> list[str]:
    """Rank in many threads with each engine, and return a line for each engine whose rankings differ.

    Args:
        bundle: a bundle of features.
        threads: the number of threads.
        rankings: how many rankings each thread makes.
    """
    failures = []
    for backend in ("onnxruntime", "openvino"):
        found = _differing(bundle, backend, threads, rankings)
        print(f"{backend}: {threads} threads, {rankings} rankings each, {'some differ' if found else 'all equal'}")
        failures += found
    return failures


def _differing(bundle: Path, backend: str, threads: int, rankings: int) -> list[str]:
    with Retriever(bundle, backend) as retriever:
        gallery = retriever.encode_images(some_features(IMAGES))
        serial = {caption: retriever.rank(caption, gallery) for caption in CAPTIONS}

        def rank(thread: int) -> int:
            rng = Random(thread)
            asked = [rng.choice(CAPTIONS) for _ in range(rankings)]
            return sum(not _equal(retriever.rank(caption, gallery), serial[caption]) for caption in asked)

        with ThreadPoolExecutor(threads) as pool:
            wrong = sum(pool.map(rank, range(threads)))
    return [f"{backend}: {wrong} of {threads * rankings} rankings in {threads} threads differ"] if wrong else []


def _equal(one: Ranking, other: Ranking) -> bool:
    same = [match.corpus_id for match in one] == [match.corpus_id for match in other]
    return same and all(abs(a.score - b.score) <= MAX_DIFFERENCE for a, b in zip(one, other, strict=True))
