"""Explanations as numbers: where each word looked, in pixels of the picture."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from camp_sdk.gallery import Gallery
from camp_sdk.pictures import upright_size
from camp_sdk.results import Explanation
from camp_sdk.runtime.manifest import PixelSpec
from camp_sdk.server.problems import Problem
from camp_sdk.server.service import Service

Size = tuple[int, int]  # width and height
Box = list[float]  # left, top, right, bottom


def check_explains(service: Service) -> None:
    """Check that the bundle explains.

    Raises:
        Problem: It was exported without an explainer: status 409.
    """
    if "explainer" not in service.retriever.model.graphs:
        raise Problem(409, "this bundle was exported without an explainer")


def explanation(service: Service, text: str, gallery: Gallery, picture: Any) -> dict[str, Any]:
    """What the network looked at.

    Args:
        service: The service.
        text: The text.
        gallery: One image.
        picture: The path or the bytes of its picture; None if there is none.
    """
    found = service.retriever.explain(text, gallery)
    size = None if picture is None else upright_size(picture, "the picture")
    return {
        "words": list(found.words),
        "unknown_words": list(unknown_words(service, text)),
        "score": found.score,
        "attention": found.to_words.T.tolist(),
        "to_regions": found.to_regions.tolist(),
        "region_gates": None if found.region_gates is None else found.region_gates.tolist(),
        "word_gates": None if found.word_gates is None else found.word_gates.tolist(),
        "grid": None if found.grid is None else list(found.grid),
        "size": None if size is None else list(size),
        "boxes": None if size is None else boxes_of(found, size),
    }


def unknown_words(service: Service, text: str) -> tuple[str, ...]:
    """The words of a text that the network does not know."""
    return service.retriever.model.tokenizer.encode([text]).unknown_words(0)


def drawn(service: Service, text: str, gallery: Gallery, picture: Any) -> bytes:
    """A PNG of what the network looked at.

    Args:
        service: The service.
        text: The text.
        gallery: One image.
        picture: The path or the bytes of its picture; None if there is none.

    Raises:
        MissingExtraError: matplotlib is not installed.
        InputError: The regions do not tile the picture.
    """
    found = service.retriever.explain(text, gallery)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explanation.png"
        found.plot(path, picture)
        return path.read_bytes()


def boxes_of(found: Explanation, size: Size) -> list[Box] | None:
    """Where the regions of a grid lie in a picture; what lies outside of it is cut off.

    Args:
        found: The explanation.
        size: The picture's width and height, upright.
    """
    if found.grid is None or found.pixels is None:
        return None
    rows, columns = found.grid
    left, top, right, bottom = _seen(found.pixels, size)
    across, down = (right - left) / columns, (bottom - top) / rows
    boxes = []
    for row in range(rows):
        for column in range(columns):
            x, y = left + column * across, top + row * down
            edges = zip((x, y, x + across, y + down), (*size, *size), strict=True)
            boxes.append([round(min(max(edge, 0.0), float(most)), 2) for edge, most in edges])
    return boxes


def _seen(spec: PixelSpec, size: Size) -> tuple[float, float, float, float]:
    """The box that the network saw, in pixels of the picture: with "letterbox" it is larger, with "crop" smaller."""
    width, height = size
    if spec.fit == "stretch":
        return 0.0, 0.0, float(width), float(height)
    scales = spec.width / width, spec.height / height
    scale = min(scales) if spec.fit == "letterbox" else max(scales)
    sides, ends = (spec.width / scale - width) / 2, (spec.height / scale - height) / 2
    return -sides, -ends, width + sides, height + ends
