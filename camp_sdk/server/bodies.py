"""Bodies of requests: JSON and multipart, read into the classes of `requests`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import python_multipart  # noqa: F401 - forms need it; Starlette finds out when the first one is read
from pydantic import BaseModel
from starlette.datastructures import FormData
from starlette.requests import ClientDisconnect, Request

from camp_sdk.server.problems import CLIENT_GONE, Problem

MULTIPART = "multipart/form-data"
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1 << 20
Model = TypeVar("Model", bound=BaseModel)


def media_type(request: Request) -> str:
    """The type of a body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(kind: str) -> bool:
    """Whether a type is JSON."""
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def body_of(request: Request) -> bytes:
    """The whole body; the middleware limits it.

    Raises:
        Problem: The client is gone.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise Problem(CLIENT_GONE, "the client closed the connection") from None


def from_json(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads a request from JSON.

    Args:
        model: The class of the request.
    """

    async def read(request: Request) -> Model:
        kind = media_type(request)
        if not is_json(kind):
            raise Problem(415, f"the body has the type {kind[:80] or 'none'}: expected application/json")
        return model.model_validate_json(await body_of(request))

    return read


@asynccontextmanager
async def form_of(request: Request, max_files: int) -> AsyncIterator[FormData]:
    """The fields and files of a multipart body.

    Args:
        request: The request.
        max_files: The most files.

    Raises:
        Problem: The client is gone, or a field is not text.
    """
    try:
        form = await request.form(max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
    except ClientDisconnect:
        raise Problem(CLIENT_GONE, "the client closed the connection") from None
    try:
        yield form
    finally:
        await form.close()


def field_of_json(name: str, text: str) -> Any:
    """The value of a field that holds JSON.

    Raises:
        Problem: It does not.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Problem(422, f"{name}: expected JSON", None, [{"field": name, "detail": "expected JSON"}]) from None


def described(model: type[BaseModel], *others: str) -> dict[str, Any]:
    """What OpenAPI says of a body that is read here.

    Args:
        model: The class of the body in JSON; `openapi` lists it.
        *others: Other types that are taken.
    """
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content | dict.fromkeys(others, binary)}}
