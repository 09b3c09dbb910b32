"""Memory of a process that ranks for long: it does not grow with the variety of shapes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

CALLS, SETTLED = 2000, 100
GROWTH_BYTES = 100 << 20
LIMIT_S = 240
PAGE_BYTES = resource.getpagesize()
SCRIPT = f"""
import random, sys
import numpy as np
from camp_sdk import Retriever

def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * {PAGE_BYTES}

rng, words = random.Random(0), "a small red circle above large blue star".split()
features = np.random.default_rng(0).standard_normal((200, 5, 12), dtype=np.float32)
with Retriever(sys.argv[1], sys.argv[2]) as retriever:
    gallery = retriever.encode_images(features)
    for call in range({CALLS}):
        if call == {SETTLED}:
            settled = resident_bytes()
        texts = [" ".join(rng.choices(words, k=rng.randint(1, 47))) for _ in range(rng.randint(1, 3))]
        retriever.score_matrix(gallery.select(slice(0, rng.randint(1, 200))), texts)
        if call % 50 == 0:
            retriever.encode_images(features[: rng.randint(1, 40), : rng.randint(1, 5)])
            retriever.explain(texts[0], features[0, : rng.randint(1, 5)])
    print(resident_bytes() - settled)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="only Linux reports its memory this way")
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_memory_over_many_shapes(feature_bundle: Path, backend: str) -> None:
    """100 MB are far above what allocators keep, and far below the gigabytes of a cache for every shape."""
    command = [sys.executable, "-c", SCRIPT, feature_bundle, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < GROWTH_BYTES
