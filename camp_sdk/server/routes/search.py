"""Searching and explaining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.arguments import Advance
from camp_sdk.server.bodies import MULTIPART, described, field_of_json, form_of, from_json, media_type
from camp_sdk.server.explaining import check_explains, drawn, explanation
from camp_sdk.server.openapi import answers
from camp_sdk.server.pictures import PICTURE_PAIRS, check_pictures, encoded
from camp_sdk.server.problems import Problem
from camp_sdk.server.requests import ExplainRequest, SearchRequest
from camp_sdk.server.searching import Query, picture_search, text_search
from camp_sdk.server.serving import Serving, answer, serving_of

router = APIRouter()
PNG = "image/png"
UPLOADED = "uploaded"  # stands for a picture that came as a file
Asked = tuple[SearchRequest, bytes | None]  # a search, and the picture that came as a file


async def _asked(request: Request) -> Asked:
    """A search, in JSON or multipart."""
    if media_type(request) != MULTIPART:
        return await from_json(SearchRequest)(request), None
    fields: dict[str, Any] = {}
    picture: bytes | None = None
    async with form_of(request, 1) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile) and name == "picture":
                picture, fields["picture"] = await value.read(), UPLOADED
            elif isinstance(value, UploadFile) or name in ("picture", "query"):
                fields[name] = value if isinstance(value, str) else UPLOADED
            else:
                fields[name] = field_of_json(name, value)
    return SearchRequest.model_validate(fields), picture


@router.post("/v1/search", openapi_extra=described(SearchRequest, MULTIPART), **answers("SearchAnswer"))
async def search(
    request: Request, asked: Annotated[Asked, Depends(_asked)], serving: Annotated[Serving, Depends(serving_of)]
) -> Response:
    """Find the best matches of a text or a picture."""
    wanted, picture = asked
    with serving.services.use() as service:
        query = Query(wanted.query or "", wanted.top_k, wanted.offset, wanted.shortlist, wanted.where, wanted.explain)
        if wanted.query is not None:
            work = text_search(service, query)
        else:
            check_pictures(service)
            given = picture or (await serving.pictures(request, service, [wanted.picture or ""]))[0]
            work = picture_search(service, given, query, serving.settings.max_megapixels)
        return answer(await serving.dispatcher.score(request, service, work))


@router.post("/v1/explain", openapi_extra=described(ExplainRequest), **answers("ExplainAnswer", PNG))
async def explain(
    request: Request,
    asked: Annotated[ExplainRequest, Depends(from_json(ExplainRequest))],
    serving: Annotated[Serving, Depends(serving_of)],
) -> Response:
    """Show where each word of a text looked in a picture."""
    with serving.services.use() as service:
        check_explains(service)
        if service.corpus.kind == "text" and asked.key is not None:
            raise Problem(409, "the items are texts: expected `picture`")
        pictures = await serving.pictures(request, service, [] if asked.picture is None else [asked.picture])
        show = drawn if _wants_png(request.headers) else explanation

        def run(advance: Advance) -> Any:
            if asked.key is not None:
                item = service.corpus.item(asked.key)
                return show(service, asked.query, service.corpus.select([asked.key]), service.corpus.picture(item))
            gallery = encoded(service, pictures, serving.settings.max_megapixels, advance)
            return show(service, asked.query, gallery, pictures[0])

        found = await serving.dispatcher.compute(request, service, run, PICTURE_PAIRS)
        return Response(found, media_type=PNG) if isinstance(found, bytes) else answer(found)


def _wants_png(headers: Mapping[str, str]) -> bool:
    kinds = [kind.partition(";")[0].strip() for kind in headers.get("accept", "").split(",")]
    return PNG in kinds and "application/json" not in kinds
