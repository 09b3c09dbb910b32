"""Galleries in device memory: uploaded once and scored block by block, or a part at a time where they do not fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import InputError

UPLOADING = threading.Lock()  # threads that rank the same images upload them once


def resident_parts(
    engine: Engine, images: EncodedImages, names: Sequence[str], memory_budget_bytes: int | None = None
) -> Iterator[tuple[int, EncodedImages]]:
    """The images where the engine wants them, from the first to the last: (index of the first, images) at a time.

    On an engine without device memory that is all of them, as they are. Otherwise their tensors ``names`` are uploaded, as
    many images at a time as fit half of the budget, or the engine's own room: what fits as a whole stays there as long as
    these images and the engine live, a part only until the next one is asked for. Raises InputError if not even one image
    fits.
    """
    if engine.room_bytes() is None:
        yield 0, images
        return
    tensors = {name: images.tensors[name] for name in names if name in images.tensors}
    image_bytes = max(1, sum(array[:1].nbytes for array in tensors.values()))
    with UPLOADING:
        whole = engine.residents.get(images)
        room = _room(engine, memory_budget_bytes)
        if whole is None and room < len(images) * image_bytes and engine.residents:
            engine.residents.clear()  # older galleries make room; whoever scores one now keeps it until that is done
            room = _room(engine, memory_budget_bytes)
        count = room // image_bytes
        if whole is None and count >= len(images):
            whole = engine.residents[images] = EncodedImages(dict(engine.hold(tensors)))
    if whole is not None:
        yield 0, whole
        return
    if count < 1:
        raise InputError(f"an image takes {image_bytes} bytes of device memory, {room} may be used")
    for start in range(0, len(images), count):
        part = engine.hold({name: array[start : start + count] for name, array in tensors.items()})
        try:
            yield start, EncodedImages(dict(part))
        finally:
            for array in part.values():  # before the next part is uploaded, whoever still has this one
                array.close()


def _room(engine: Engine, memory_budget_bytes: int | None) -> int:
    """Bytes that may still be taken: half of the budget for all galleries together, of what the device has left."""
    free = engine.room_bytes() or 0
    if memory_budget_bytes is None:
        return free
    held = sum(int(array.nbytes) for images in engine.residents.values() for array in images.tensors.values())
    return max(0, min(free, memory_budget_bytes // 2 - held))
