"""The outermost layer: an ID for each request, keys, limits, security headers, and a line in the log."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from camp_sdk.server.keys import Keys
from camp_sdk.server.metrics import Metrics
from camp_sdk.server.problems import Problem, problem_of
from camp_sdk.server.settings import Settings

LOG = logging.getLogger("camp_sdk.server")
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OPEN_PATHS = frozenset({"/", "/health", "/ready", "/openapi.json"})
WRITING = ("/v1/items", "/v1/reload")
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
BODIES_AT_ONCE = 8  # of the largest size
ITEMS = b"/v1/items/"
SLASH, LINE_END = "\ud800", "\ud801"  # stand for %2F and %0A: halves of surrogate pairs, which no key has
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


@dataclass
class _Answer:
    """What the log and the metrics say of a request."""

    request_id: str
    status: int = 0
    begun: bool = False
    body: int = 0  # bytes of the request that were read
    whole: bool = False  # whether all of them were
    since: float = field(default_factory=time.monotonic)


class Guard:
    """Lets requests through that have a key, a proper host and a bounded body.

    Args:
        app: The application.
        settings: The settings.
        keys: The keys.
        metrics: Counts requests.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys, metrics: Metrics) -> None:
        self._app, self._settings, self._keys, self._metrics = app, settings, keys, metrics
        self._bodies = 0  # bytes of all requests that are being answered
        local = {"localhost", "127.0.0.1", "[::1]", settings.host, f"[{settings.host}]", *settings.allow_host}
        # A page of another site could otherwise reach this server under a name of its own (DNS rebinding).
        self._hosts = frozenset(map(str.lower, local)) if settings.is_local and keys.reading is None else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = dict(scope)  # `_keep_slashes` changes its path, which a server's own log could not write
        headers = Headers(scope=scope)
        answer = _Answer(_request_id(headers))
        scope.setdefault("state", {})["request_id"] = answer.request_id
        token = REQUEST_ID.set(answer.request_id)
        try:
            await self._answer(scope, receive, self._sender(scope, send, answer), answer)
        finally:
            self._bodies -= answer.body
            self._note(scope, answer)
            REQUEST_ID.reset(token)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, answer: _Answer) -> None:
        hidden = scope["app"].state.hidden
        try:
            self._check(scope)
            _keep_slashes(scope)
            await self._app(scope, self._receiver(scope, receive, answer), send)
        except Exception as error:
            problem = problem_of(error, hidden)
            if not answer.begun:
                await problem.response(answer.request_id)(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        """Raise a Problem unless the request has a key, comes from here, and is not too large."""
        headers, path = Headers(scope=scope), scope["path"].removeprefix(scope.get("root_path", ""))
        host = headers.get("host", "")
        if self._hosts is not None and re.sub(r":\d*$", "", host).lower() not in self._hosts:
            raise Problem(403, "this server has no keys, and is meant for this machine: expected the host localhost")
        if path in OPEN_PATHS:
            return
        allowed = headers.get("origin") in self._settings.allow_origin
        if headers.get("sec-fetch-site") == "cross-site" and not allowed:
            raise Problem(403, "a page of another site asked: allow its origin with --allow-origin")
        self._check_keys(headers, scope["method"], path)
        if int(_digits(headers.get("content-length"))) > self._settings.max_body:
            raise self._too_large()

    def _check_keys(self, headers: Headers, method: str, path: str) -> None:
        given = headers.get("authorization")
        key = None if given is None else given.encode("latin-1")
        writes = path.startswith(WRITING) and method not in READING_METHODS
        if writes and self._keys.writing is None:
            raise Problem(403, "this server takes no changes: it has no keys for writing")
        if method == "OPTIONS" or (self._keys.may_write(key) if writes else self._keys.may_read(key)):
            return
        if writes and key is not None and self._keys.reading is not None and self._keys.may_read(key):
            raise Problem(403, "this key is for reading: expected one for writing")
        raise Problem(401, "expected the header Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})

    def _too_large(self) -> Problem:
        self._metrics.refused("body")
        return Problem(413, f"the body has more than {self._settings.max_body} bytes", {"Connection": "close"})

    def _receiver(self, scope: Scope, receive: Receive, answer: _Answer) -> Receive:
        most = self._settings.max_body

        async def counted() -> Message:
            message = await (receive() if answer.whole else self._in_time(receive, answer))
            answer.whole = not message.get("more_body", False)
            size = len(message.get("body", b""))
            answer.body += size
            self._bodies += size
            if answer.body > most:
                raise self._too_large()
            if self._bodies > BODIES_AT_ONCE * most:
                self._metrics.refused("bodies")
                raise Problem(429, "too many large requests at once: try again later", {"Retry-After": "1"})
            return message

        return counted

    async def _in_time(self, receive: Receive, answer: _Answer) -> Message:
        """A part of the body, which a client must not send for longer than a request may take."""
        limit = self._settings.time_limit
        try:
            return await asyncio.wait_for(receive(), answer.since + limit - time.monotonic())
        except asyncio.TimeoutError:  # which is TimeoutError since Python 3.11
            self._metrics.refused("time")
            raise Problem(408, f"the body did not arrive within {limit:g} s", {"Connection": "close"}) from None

    def _sender(self, scope: Scope, send: Send, answer: _Answer) -> Send:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer.begun, answer.status = True, message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = answer.request_id
                if scope["app"].state.serving.services.draining:  # the client's next request goes elsewhere
                    headers["Connection"] = "close"
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        return with_headers

    def _note(self, scope: Scope, answer: _Answer) -> None:
        seconds, path = time.monotonic() - answer.since, _template(scope)
        method = scope["method"] if scope["method"] in READING_METHODS | {"POST", "PUT", "PATCH", "DELETE"} else "OTHER"
        self._metrics.answered(method, path, answer.status, seconds)
        fields = {"method": method, "path": path, "status": answer.status, "ms": round(1000 * seconds, 1)}
        LOG.info("%s %s %d %.1f ms", *fields.values(), extra={"fields": fields})


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if SANE_ID.fullmatch(given) else secrets.token_hex(8)


def _digits(text: str | None) -> str:
    return text if text and text.isascii() and text.isdigit() and len(text) < 19 else "0"


def _template(scope: Scope) -> str:
    """The template of the path that was asked for, which shows no key."""
    route = scope.get("route")
    return str(getattr(route, "path", "unknown"))


def _keep_slashes(scope: Scope) -> None:
    """Keep slashes within a key apart from those of the path, because a key may end in /thumbnail.

    Line ends, too, are replaced, which the routes' patterns do not match.
    """
    raw: bytes = scope.get("raw_path") or b""
    root: str = scope.get("root_path", "")
    if b"%" in raw and raw.removeprefix(root.encode()).startswith(ITEMS):
        parts = re.split(rb"%2f", raw, flags=re.IGNORECASE)
        path = SLASH.join(unquote(part.decode("latin-1"), errors="replace") for part in parts)
        scope["path"] = path.replace("\n", LINE_END)


def key_in_path(text: str) -> str:
    """The key that a path names."""
    return text.replace(SLASH, "/").replace(LINE_END, "\n")
