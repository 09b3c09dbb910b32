"""What a server says of itself, its page, and reloading."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.runtime.errors import CampError
from camp_sdk.server.metrics import CONTENT_TYPE
from camp_sdk.server.openapi import answers
from camp_sdk.server.page import PAGE
from camp_sdk.server.problems import LOG, RETRY_S, Problem
from camp_sdk.server.service import Service
from camp_sdk.server.serving import Serving, answer, serving_of

router = APIRouter()
CANNOT_RELOAD = "what should be served now cannot be opened, and what was served before stays; the log says why"


@router.head("/", include_in_schema=False)
@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The page to search with."""
    return Response(PAGE.content, media_type="text/html", headers=PAGE.headers)


@router.head("/health", include_in_schema=False)
@router.get("/health", **answers("StatusAnswer"))
async def health() -> Response:
    """Say that the process works."""
    return answer({"status": "ok"})


@router.head("/ready", include_in_schema=False)
@router.get("/ready", **answers("StatusAnswer"))
async def ready(serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Say whether requests should come."""
    if not serving.services.ready:
        what = "draining" if serving.services.draining else "loading"
        raise Problem(503, f"the server is {what}", {"Retry-After": str(RETRY_S)})
    return answer({"status": "ready"})


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Figures in Prometheus' format."""
    return Response(serving.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/models", **answers("ModelsAnswer"))
async def models(request: Request, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Describe the network and what it searches."""
    with serving.services.use() as service:
        return answer({"object": "list", "data": [await serving.read(request, lambda: _model(serving, service))]})


@router.post("/v1/reload", **answers("ReloadAnswer"))
async def reload(request: Request, serving: Annotated[Serving, Depends(serving_of)]) -> Response:
    """Open the bundle and the corpus again, and change over to them."""
    started = time.monotonic()
    try:
        fresh = await serving.read(request, serving.services.load)
    except (CampError, OSError) as error:
        LOG.error("reload failed: %s", error)
        raise Problem(500, CANNOT_RELOAD) from None
    return answer({"id": fresh.name, "items": fresh.items, "seconds": round(time.monotonic() - started, 3)})


def _model(serving: Serving, service: Service) -> dict[str, Any]:
    retriever, corpus = service.retriever, service.corpus
    manifest = retriever.bundle.manifest
    service.items = len(corpus)
    first = manifest.first_stage
    return {
        "id": service.name,
        "object": "model",
        "created": service.opened,
        "owned_by": "camp-sdk",
        "variant": manifest.variant,
        "fingerprint": retriever.bundle.fingerprint,
        "backend": retriever.backend,
        "precision": retriever.precision,
        "activation": manifest.activation,
        "max_words": manifest.max_words,
        "reads_pictures": service.reads_pictures,
        "global_vectors": service.has_vectors,
        "explains": "explainer" in retriever.model.graphs,
        "corpus": {
            "kind": corpus.kind,
            "store": corpus.store,
            "items": service.items,
            "writable": corpus.store == "index" and serving.settings.write_keys is not None,
            "shortlist": None if first is None else first.shortlist,
        },
    }
