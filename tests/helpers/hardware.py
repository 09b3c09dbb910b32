"""What the processor of this machine can compute."""

from __future__ import annotations

import pytest

from camp_sdk.runtime.engines.openvino_engine import require_bfloat16
from camp_sdk.runtime.errors import BackendError


def bfloat16_here() -> bool:
    """Whether this processor multiplies matrices in bfloat16: what is tested of it depends on that."""
    try:
        require_bfloat16()
    except BackendError:
        return False
    return True


def lower_precisions() -> list[str]:
    """The lower precisions that this machine exports."""
    return ["float16", "int8", *(["bfloat16"] if bfloat16_here() else [])]


needs_bfloat16 = pytest.mark.skipif(not bfloat16_here(), reason="this processor does not compute in bfloat16")
