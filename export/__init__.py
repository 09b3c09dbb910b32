"""Training and export, which need PyTorch. These names are the public ones; each is imported when it is first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camp_sdk.export.bundling.packing import Facts, Parts, pack
    from camp_sdk.export.bundling.writer import export_bundle
    from camp_sdk.export.network.camp import Scorer
    from camp_sdk.export.network.encoders import BidirectionalGRU, ImageEncoder, TextEncoder
    from camp_sdk.export.network.networks import add_network

__all__ = [
    "BidirectionalGRU",
    "Facts",
    "ImageEncoder",
    "Parts",
    "Scorer",
    "TextEncoder",
    "add_network",
    "export_bundle",
    "pack",
]
_HOME = {
    "bundling.packing": ("Facts", "Parts", "pack"),
    "bundling.writer": ("export_bundle",),
    "network.camp": ("Scorer",),
    "network.encoders": ("BidirectionalGRU", "ImageEncoder", "TextEncoder"),
    "network.networks": ("add_network",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
