"""Pictures that come with requests: data: URLs, base64 and, of hosts that are allowed, URLs."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from camp_sdk.arguments import Advance, silent
from camp_sdk.gallery import Gallery
from camp_sdk.pictures import upright_size
from camp_sdk.runtime.errors import InputError
from camp_sdk.server.fetching import Fetcher, Spent
from camp_sdk.server.problems import Problem
from camp_sdk.server.service import Service

DATA_URL = re.compile(r"data:[\w.+/-]{0,100};base64,", re.IGNORECASE)
PICTURE_PAIRS = 64  # what a picture counts for that is encoded
URL = re.compile(r"https?://", re.IGNORECASE)


def is_data_url(text: str) -> bool:
    """Whether a text is a data: URL, and so a picture."""
    return text[:5].lower() == "data:"


def picture_of(text: str, fetcher: Fetcher, spent: Spent) -> bytes:
    """The file that a field of a request holds or names. It may take as long as fetching does.

    Args:
        text: A data: URL, base64, or a URL.
        fetcher: Fetches URLs.
        spent: What was fetched before, for the same request.

    Raises:
        InputError: It is none of these.
        Problem: The URL is not one that is fetched.
    """
    if URL.match(text):
        return fetcher.fetch(text, spent)
    encoded = text
    if is_data_url(text):
        start = DATA_URL.match(text)
        if start is None:
            raise InputError("the data: URL is not in base64: expected data:image/png;base64,...")
        encoded = text[start.end() :]
    try:
        found = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):  # the latter for text that is not ASCII
        raise InputError("the picture is neither a data: URL nor base64") from None
    if not found:
        raise InputError("the picture is empty")
    return found


def check_size(picture: bytes, max_megapixels: float) -> None:
    """Check the size of a picture by its header.

    Raises:
        PictureError: It is too large, or no picture.
    """
    upright_size(picture, "the picture", max_megapixels)


def check_pictures(service: Service) -> None:
    """Check that the bundle takes pictures.

    Raises:
        Problem: It takes region features: status 409.
    """
    if not service.reads_pictures:
        raise Problem(409, "this bundle takes region features, not pictures")


def encoded(service: Service, pictures: Sequence[bytes], max_megapixels: float, advance: Advance = silent) -> Gallery:
    """Pictures of a request, encoded.

    Args:
        service: The service.
        pictures: The pictures.
        max_megapixels: Larger pictures are not decoded.
        advance: Receives the pairs that the pictures of each batch count for.

    Raises:
        PictureError: One of them cannot be read.
    """
    names = ["the picture"] if len(pictures) == 1 else [f"picture {number}" for number in range(len(pictures))]

    def counted(number: int) -> None:
        advance(PICTURE_PAIRS * number)

    return service.retriever.encode_images(pictures, names, counted, max_megapixels=max_megapixels)
