"""What requests hold: texts, keys and pictures as JSON, in requests of a bounded size.

A string is never a path here: what users of an app type could otherwise have it read its own files, and send them.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np

from camp_sdk.arguments import distinct, is_several
from camp_sdk.client.wire import Request
from camp_sdk.index.arrivals import checked_key
from camp_sdk.index.where import compile_where
from camp_sdk.picture_files import in_memory, is_one_picture, reason_of
from camp_sdk.pictures import PictureError, check_picture, held, read_shrunk
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief

MAX_REQUEST_BYTES = 8 << 20  # of a request that holds several items; the server's own limit is 20 MiB by default
WHOLE = 1 << 31  # pixels a side, to which nothing is scaled down
DATA_URL = "data:application/octet-stream;base64,"
T = TypeVar("T")


def post(path: str, body: Mapping[str, Any]) -> Request:
    """A request with a body in JSON.

    Raises:
        InputError: A value is not what JSON has.
    """
    return Request("POST", path, to_json(body).encode())


def to_json(value: Any) -> str:
    """A value in JSON.

    Raises:
        InputError: It is not what JSON has.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{brief(value)} cannot be sent: {error}") from None


def conditions(where: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Conditions on metadata, checked.

    Raises:
        InputError: They are not understood.
    """
    if where is not None:
        compile_where(where)
    return where


def item_path(key: Any, form: str = "") -> str:
    """The path of an item.

    Args:
        key: The key of the item.
        form: What of it, such as "/thumbnail".

    Raises:
        InputError: The key is none, or cannot be written in a path.
    """
    if checked_key(key) in (".", ".."):
        raise InputError(f"the key {key!r} cannot be written in a path, so no server has it")
    return f"/v1/items/{quote(key, safe='')}{form}"


def picture_bytes(picture: Any, name: str) -> bytes:
    """The file that stands for a picture.

    Args:
        picture: As `Retriever.encode_images` takes it, except that a string is no path.
        name: Its name in messages.

    Returns:
        The file as it is; of an image of Pillow, or an array, a PNG of what a `Retriever` would see.

    Raises:
        InputError: It is no picture.
        PictureError: It cannot be read.
    """
    check_picture(picture, name)
    if isinstance(picture, os.PathLike):
        return _file(Path(os.fsdecode(picture)), os.fsdecode(picture))
    found = held(picture, name)
    return found if isinstance(found, bytes) else _png(found, name)


def _file(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            found: bytes = in_memory(file)
            return found
    except (OSError, ValueError) as error:
        raise PictureError(f"{name} cannot be read as a picture: {reason_of(error)}") from None


def _png(picture: Any, name: str) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(read_shrunk(picture, WHOLE, name)).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def data_url(picture: Any, name: str = "the picture") -> str:
    """A picture as a data: URL."""
    return DATA_URL + base64.b64encode(picture_bytes(picture, name)).decode()


def image_field(image: Any, name: str = "the picture") -> dict[str, str]:
    """An image of a request: an item by its key, which is a string, or a picture."""
    return {"key": checked_key(image)} if isinstance(image, str) else {"picture": data_url(image, name)}


def pair_parts(pairs: Sequence[tuple[Any, str]]) -> Iterator[tuple[int, str]]:
    """Pairs in JSON, with their places; those of one image follow each other, so that it is read once.

    Args:
        pairs: Pairs (image, text).

    Raises:
        InputError: An element is not a pair, or its image cannot be used.
    """
    for place, pair in enumerate(pairs):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], str):
            raise InputError(f"pair {place} is {brief(pair)}: expected (image, text)")
    images, numbers = distinct([image for image, _ in pairs])
    order = np.argsort(numbers, kind="stable").tolist()
    for number, places in itertools.groupby(order, key=lambda place: int(numbers[place])):
        field = image_field(images[number], f"image {number}")
        for place in places:
            yield place, to_json({"text": pairs[place][1]} | field)


def input_parts(items: Any) -> Iterator[tuple[int, str]]:
    """Texts and pictures in JSON, with their places.

    Args:
        items: The texts and pictures.

    Raises:
        InputError: They are no list, or one cannot be used.
    """
    if is_one_picture(items) or not is_several(items):
        raise InputError(f"items is {brief(items)}: expected a list of texts and pictures")
    for place, item in enumerate(items):
        if isinstance(item, str) and item[:5].lower() == "data:":
            raise InputError(f"text {place} begins with data:, which stands for a picture: expected another beginning")
        yield place, to_json(item if isinstance(item, str) else data_url(item, f"item {place}"))


def batches(parts: Iterable[tuple[T, str]], most: int) -> Iterator[tuple[list[T], str]]:
    """Divide parts among requests: of at most a number of parts, and a number of bytes unless there is only one.

    Args:
        parts: What is known of each part, and the part in JSON.
        most: The most parts of a request.

    Yields:
        What is known of the parts of a request, and their list in JSON.
    """
    for listed in _divided(parts, most):
        yield [known for known, _ in listed], f"[{','.join(text for _, text in listed)}]"


def _divided(parts: Iterable[tuple[T, str]], most: int) -> Iterator[list[tuple[T, str]]]:
    listed: list[tuple[T, str]] = []
    size = 0
    for known, text in parts:
        if listed and (len(listed) == most or size + len(text) > MAX_REQUEST_BYTES):
            yield listed
            listed, size = [], 0
        listed.append((known, text))
        size += len(text)
    if listed:
        yield listed
