"""What both clients know of httpx: its options, and what it sends, receives and raises."""

from __future__ import annotations

import re
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from camp_sdk.arguments import is_whole
from camp_sdk.client.wire import Body, Failure, Reply, Request
from camp_sdk.runtime.errors import InputError, MissingExtraError
from camp_sdk.runtime.messages import brief, visible

if TYPE_CHECKING:
    import httpx

KEPT_S = 2.0  # that an idle connection is kept: less than servers do, which would close one as it is used
KEY = re.compile(r"[\x21-\x7e]+")


def import_httpx() -> ModuleType:
    """The package httpx.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import httpx
    except ImportError:
        raise MissingExtraError("httpx", "client") from None
    return httpx


def options_of(url: Any, key: Any, timeout_s: Any, retries: Any, transport: Any) -> dict[str, Any]:
    """The options of a client of httpx.

    Args:
        url: The address of the server.
        key: The key; None for none.
        timeout_s: How long a request may take.
        retries: How often a request is sent again.
        transport: What sends requests; None for httpx's own.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        MissingExtraError: httpx is not installed.
    """
    if key is not None and (not isinstance(key, str) or not KEY.fullmatch(key)):
        raise InputError("`key` is not a key: expected letters, digits and signs of ASCII, without spaces")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < float("inf"):
        raise InputError(f"`timeout_s` is {brief(timeout_s)}: expected a number of seconds, more than 0")
    if not is_whole(retries) or retries < 0:
        raise InputError(f"`retries` is {brief(retries)}: expected a whole number, 0 or more")
    headers = {"Accept-Encoding": "identity"}  # of a compressed answer, the size would not be known
    return {
        "base_url": checked_url(url),
        "headers": headers | ({} if key is None else {"Authorization": f"Bearer {key}"}),
        "timeout": timeout_s,
        "transport": transport,
        "limits": import_httpx().Limits(keepalive_expiry=KEPT_S),
    }


def checked_url(url: Any) -> str:
    """The address of a server, without a slash at its end.

    Raises:
        InputError: It is not one.
    """
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        fits = parts and parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1)
    except ValueError:  # of a port that is no number
        parts, fits = None, False
    if not parts or not fits or parts.username is not None or parts.query or parts.fragment:
        raise InputError(f"`url` is {brief(url)}: expected the address of a server, such as http://127.0.0.1:8000")
    return str(url).rstrip("/")


def sent(request: Request) -> dict[str, Any]:
    """A request, as the arguments of httpx's `stream`."""
    headers = {} if request.content is None else {"Content-Type": request.content_type}
    return {"method": request.method, "url": request.path, "content": request.content, "headers": headers}


def received(response: httpx.Response, body: Body) -> Reply:
    """An answer whose body was read."""
    headers = response.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    retry_after, request_id = headers.get("retry-after", ""), headers.get("x-request-id", "")
    return Reply(response.status_code, kind, retry_after, request_id, body.whole())


def failure_of(error: Exception) -> Failure:
    """Why there is no answer.

    Args:
        error: What httpx raised.

    Raises:
        InputError: The request cannot be sent.
    """
    httpx = import_httpx()
    if isinstance(error, httpx.InvalidURL):
        raise InputError("the address of the request is too long for a key or conditions of this size") from None
    unsent = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout))
    if isinstance(error, httpx.TimeoutException):
        reason = "it takes longer than `timeout_s`"
    else:
        reason = visible(str(error)[:200]) or type(error).__name__
    return Failure(reason, not unsent)
