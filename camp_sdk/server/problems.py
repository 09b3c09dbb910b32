"""Errors as answers: application/problem+json (RFC 9457), which shows nothing of the machine."""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.runtime.errors import BusyError, InputError, MissingExtraError

LOG = logging.getLogger("camp_sdk.server")
MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # fields that a problem names
RETRY_S = 5
CLIENT_GONE = 499  # which nobody receives, but logs and metrics show
TITLES = {CLIENT_GONE: "Client Closed Request", 413: "Content Too Large", 422: "Unprocessable Content"}


class Problem(Exception):
    """An answer that is an error.

    Args:
        status: The status.
        detail: What is wrong, for people.
        headers: Further headers.
        errors: The fields of the request that cannot be used, with the reasons.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.errors = status, detail, dict(headers or {}), tuple(errors)

    def content(self, request_id: str) -> dict[str, Any]:
        """The answer's content."""
        title = TITLES.get(self.status) or http.HTTPStatus(self.status).phrase
        found = {"type": "about:blank", "title": title, "status": self.status, "detail": self.detail}
        return {**found, "request_id": request_id, **({"errors": list(self.errors)} if self.errors else {})}

    def response(self, request_id: str) -> Response:
        """The answer."""
        # Escapes keep half a surrogate pair, which a message may repeat, from being an error of its own.
        content = json.dumps(self.content(request_id)).encode()
        return Response(content, self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception, hidden: Mapping[str, str]) -> Problem:
    """The problem that an error stands for; what is not meant for clients is logged.

    Args:
        error: The error.
        hidden: Paths of this machine, and what is shown in their place.
    """
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return Problem(error.status_code, str(error.detail), error.headers)
    if isinstance(error, (RequestValidationError, ValidationError)):
        return invalid(list(error.errors()))
    if isinstance(error, InputError):
        return Problem(422, _without(str(error), hidden))
    if isinstance(error, BusyError):
        LOG.warning("%s", error)
        return Problem(503, "another process writes to the index: try again later", {"Retry-After": str(RETRY_S)})
    if isinstance(error, MissingExtraError):
        return Problem(501, str(error))
    LOG.error("%s", error, exc_info=error)
    return Problem(500, "a fault of the server, which its log describes under this request's ID")


def invalid(errors: Sequence[Any]) -> Problem:
    """The problem of a request that does not have the form expected.

    Args:
        errors: What pydantic found.
    """
    found = [{"field": _field(error["loc"]), "detail": str(error["msg"])} for error in errors[:MAX_ERRORS]]
    first = found[0]
    if errors[0]["type"] == "json_invalid":
        return Problem(400, f"the body is not JSON: {first['detail']}")
    named = f"{first['field']}: " if first["field"] else ""
    return Problem(422, named + first["detail"], None, found)


def _field(location: Sequence[Any]) -> str:
    """The path of a field: pairs[3].text."""
    parts = [part for part in location if part not in ("body", "query", "path")]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")[:200]


def _without(message: str, hidden: Mapping[str, str]) -> str:
    for path, shown in hidden.items():
        message = message.replace(path, shown)
    return message


async def handler(request: Request, error: Exception) -> Response:
    """Answer an error; for `FastAPI.add_exception_handler`."""
    hidden: Mapping[str, str] = request.app.state.hidden
    return problem_of(error, hidden).response(request.state.request_id)
