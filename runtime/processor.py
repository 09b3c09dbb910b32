"""What this machine's processor multiplies fast."""

from __future__ import annotations

import functools
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Instructions that multiply bytes and add up the products: of x86 processors, and of Arm ones.
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
BYTES_LIMIT = 1 << 16  # of the description: that of the first core is enough


@functools.cache
def multiplies_int8() -> bool:
    """Whether the processor has instructions for products of int8; False where that cannot be found out (not Linux)."""
    try:
        with CPU_INFO.open(encoding="utf-8", errors="replace") as file:
            return not INT8_FLAGS.isdisjoint(file.read(BYTES_LIMIT).split())
    except OSError:
        return False
