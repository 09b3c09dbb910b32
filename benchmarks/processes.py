"""The costs of a fresh process: imports, the first ranking, peak memory. Each is measured in a process of its own."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import median_s

MEMORY = """
import re, sys
import numpy as np
from camp_sdk import Retriever
def memory_bytes(kind):
    return int(re.search(kind + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
bundle, backend, precision, captions = sys.argv[1:5]
retriever = Retriever(bundle, backend, precision)
gallery = retriever.encode_images(np.load(sys.argv[5], mmap_mode="r"))
texts = retriever.encode_texts(captions.split("|"))
before = memory_bytes("VmRSS")
retriever.score_matrix(gallery, texts)
print(memory_bytes("VmHWM"), memory_bytes("VmHWM") - before)
"""


def measure_memory(
    engines_by_bundle: dict[Path, list[tuple[str, str]]], features: Path, captions: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Peak resident bytes of a process that scores all pairs, and how much of them scoring added.

    Args:
        engines_by_bundle: for each bundle, (backend, precision) of the engines to measure.
        features: a .npy file of image features.
        captions: the texts.
    """
    found = {}
    for bundle, engines in engines_by_bundle.items():
        for backend, precision in engines:
            arguments = [str(bundle), backend, precision, "|".join(captions), str(features)]
            peak, grown = _run_python(MEMORY, *arguments).split()
            found[f"{bundle.name}, {backend} {precision}"] = {"peak_bytes": int(peak), "scoring_bytes": int(grown)}
    return found


FIRST = """
import sys, time
start = time.perf_counter()
import numpy as np
from camp_sdk import Retriever
imported = time.perf_counter()
features = np.load(sys.argv[2])[:100]
loaded = time.perf_counter()
retriever = Retriever(sys.argv[1], sys.argv[3])
retriever.rank(sys.argv[4], features)
print(imported - start, time.perf_counter() - loaded)
"""
RESIDENT = """
import re
import camp_sdk
print(int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


def measure_start(bundle: Path, features: Path, caption: str) -> dict[str, Any]:
    """Seconds of imports, each in its own process, and of opening a bundle and ranking 100 images for the first time.

    Args:
        bundle: the bundle to open.
        features: a .npy file of image features.
        caption: the query.
    """

    def import_s(module: str) -> float:
        return median_s(lambda: _run_python(f"import {module}"))

    bare, numpy, ours = (import_s(module) for module in ("sys", "numpy", "camp_sdk"))
    first = {
        backend: statistics.median(
            float(_run_python(FIRST, str(bundle), str(features), backend, caption).split()[1]) for _ in range(5)
        )
        for backend in ("onnxruntime", "openvino")
    }
    return {
        "import_s": {"python": bare, "numpy": numpy, "camp_sdk": ours},
        "import_ms_by_package": import_ms_by_package(),
        "import_ratio": ours / numpy,
        "resident_bytes": int(_run_python(RESIDENT)),
        "open_and_first_rank_s": first,
    }


def import_ms_by_package() -> dict[str, float]:
    """Milliseconds that `import camp_sdk` spends in each package: the eight longest, and the rest as "other"."""
    command = [sys.executable, "-X", "importtime", "-c", "import camp_sdk"]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True).stderr for _ in range(5)]
    spent: dict[str, list[float]] = {}
    for run in runs:
        one: dict[str, float] = {}
        for own_us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", run, re.MULTILINE):
            package = name.split(".")[0]
            one[package] = one.get(package, 0) + int(own_us) / 1000
        for package, ms in one.items():
            spent.setdefault(package, []).append(ms)
    medians = sorted(((statistics.median(ms), package) for package, ms in spent.items()), reverse=True)
    return {package: ms for ms, package in medians[:8]} | {"other": sum(ms for ms, _ in medians[8:])}


def _run_python(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout
