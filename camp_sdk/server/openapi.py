"""What /openapi.json says: the models of requests and answers, the errors, and the keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from camp_sdk.server import answers as answer_models
from camp_sdk.server import requests as request_models
from camp_sdk.server.problems import MEDIA_TYPE

COMPONENTS = "#/components/schemas/"
ERRORS = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 500, 501, 502, 503, 504)


def answers(*kinds: str) -> dict[str, Any]:
    """What OpenAPI says of an endpoint's answers: keyword arguments of its route.

    Args:
        *kinds: The name of the answer's class in `answers`, and other types that it answers.
    """
    content = dict(map(_content, kinds))
    return {"response_class": Response, "responses": {200: {"description": "The answer", "content": content}}}


def _content(kind: str) -> tuple[str, dict[str, Any]]:
    if "/" in kind:
        return kind, {"schema": {"type": "string", "format": "binary"}}
    return "application/json", {"schema": {"$ref": COMPONENTS + kind}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description of an app.

    Args:
        app: The app.
    """
    found = get_openapi(title=app.title, version=app.version, routes=app.routes, description=app.description)
    models = [model for module in (request_models, answer_models) for model in _models(module)]
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=COMPONENTS + "{model}")
    components = found.setdefault("components", {})
    components["schemas"] = schemas["$defs"]
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    problem = {"description": "An error", "content": {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS + "ProblemAnswer"}}}}
    for path in found["paths"].values():
        for operation in path.values():
            operation["security"] = [{"key": []}, {}]
            operation["responses"].update({str(status): problem for status in ERRORS})
    return found


def _models(module: Any) -> list[type[BaseModel]]:
    found = (value for value in vars(module).values() if isinstance(value, type) and issubclass(value, BaseModel))
    return [model for model in found if model.__module__ == module.__name__]
