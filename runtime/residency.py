"""Galleries in device memory: a gallery is uploaded once and scored block by block, or in parts if it does not fit."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from camp_sdk.runtime.encoded import EncodedImages
from camp_sdk.runtime.engines.base import Engine
from camp_sdk.runtime.errors import InputError

UPLOADING = threading.Lock()  # so that threads that rank the same images upload them only once


def resident_parts(
    engine: Engine, images: EncodedImages, names: Sequence[str], memory_budget_bytes: int | None = None
) -> Iterator[tuple[int, EncodedImages]]:
    """Place images where the engine reads them fastest, and yield them in order, in one or more parts.

    An engine without device memory gets all images at once, unchanged. Otherwise the images are uploaded, as many at a
    time as fit in half of the budget, or in the engine's free memory. If all of them fit, they stay in device memory as
    long as these images and the engine exist. Otherwise a part stays only until the next one is requested.

    Args:
        engine: the scorer's engine.
        images: the images to score.
        names: the tensors to upload.
        memory_budget_bytes: the most memory a call may use; None for no limit but the engine's.

    Yields:
        The index of the first image of a part, and the part.

    Raises:
        InputError: not even one image fits.
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
            engine.residents.clear()  # frees older galleries; a thread that is scoring one keeps it until it is done
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
            for array in part.values():  # freed before the next upload, even if the caller still refers to the part
                array.close()


def _room(engine: Engine, memory_budget_bytes: int | None) -> int:
    """Bytes that may still be used: the rest of half the budget, which all galleries share, within the free memory."""
    free = engine.room_bytes() or 0
    if memory_budget_bytes is None:
        return free
    held = sum(int(array.nbytes) for images in engine.residents.values() for array in images.tensors.values())
    return max(0, min(free, memory_budget_bytes // 2 - held))
