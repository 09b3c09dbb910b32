"""Items of the index: read, added, changed and removed, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from camp_sdk.index.items import Added
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.messages import brief
from camp_sdk.server.bodies import (
    MULTIPART,
    body_of,
    described,
    field_of_json,
    form_of,
    from_json,
    is_json,
    media_type,
)
from camp_sdk.server.corpus import Corpus, IndexCorpus
from camp_sdk.server.guard import key_in_path
from camp_sdk.server.openapi import answers
from camp_sdk.server.pictures import check_pictures
from camp_sdk.server.problems import Problem
from camp_sdk.server.requests import MAX_ITEMS, MAX_OFFSET, Changes, NewItem, NewItems
from camp_sdk.server.searching import item_fields
from camp_sdk.server.service import Service
from camp_sdk.server.serving import Serving, answer, serving_of
from camp_sdk.server.thumbnails import NO_PICTURE
from camp_sdk.server.uploads import Upload, Uploads

router = APIRouter()
ITEM = "/v1/items/{key:path}"
STORES = {"gallery": "a gallery", "parts": "an index in parts"}
JPEG = "image/jpeg"
BYTES = "application/octet-stream"
Given = Annotated[Serving, Depends(serving_of)]


@router.get(ITEM + "/thumbnail", **answers(JPEG))
@router.get(ITEM + "/picture", **answers(JPEG))
async def picture(request: Request, key: str, serving: Given) -> Response:
    """The picture of an item, scaled down."""
    form = request.scope["path"].rpartition("/")[2]
    with serving.services.use() as service:

        def find() -> tuple[str, Any]:
            file = service.corpus.picture(service.corpus.item(key_in_path(key)))
            if file is None:
                raise Problem(404, NO_PICTURE)
            return serving.thumbnails.tag(file, form), file

        tag, file = await serving.read(request, find)
        headers = {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache"}
        if f'"{tag}"' in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        made = await serving.read(request, lambda: serving.thumbnails.jpeg(file, form, tag))
    return Response(made, headers=headers, media_type=JPEG)


@router.get("/v1/items", **answers("ItemsAnswer"))
async def items(
    request: Request,
    serving: Given,
    where: Annotated[str, Query(description="Conditions on metadata, in JSON.")] = "{}",
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET * 1000)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> Response:
    """List items by their metadata."""
    conditions = field_of_json("where", where)
    with serving.services.use() as service:
        corpus = _index_of(service.corpus)

        def read() -> list[dict[str, Any]]:
            found = corpus.index.where(conditions, offset, limit + 1)  # one more shows whether there is another page
            return [item_fields(service, corpus.described(item.key, item.document, item.metadata)) for item in found]

        found = await serving.read(request, read)
    following = offset + limit if len(found) > limit else None
    return answer({"items": found[:limit], "offset": offset, "next_offset": following})


@router.post("/v1/items", openapi_extra=described(NewItems, MULTIPART), **answers("AddedAnswer"))
async def add_items(request: Request, serving: Given) -> Response:
    """Add several items."""
    with serving.services.use() as service:
        uploads = await _several(request, serving, service)
        added = await _write(request, serving, service, lambda changes: changes.add(uploads, skip_broken=True))
        return answer(_counts(added))


@router.get(ITEM, **answers("ItemAnswer"))
async def item(request: Request, key: str, serving: Given) -> Response:
    """Read an item."""
    with serving.services.use() as service:
        _index_of(service.corpus)
        return answer(await serving.read(request, partial(_fields, service, key_in_path(key))))


@router.put(ITEM, openapi_extra=described(NewItem, "image/*", BYTES), **answers("ItemAnswer"))
async def put_item(request: Request, key: str, serving: Given) -> Response:
    """Add an item, or replace the one with this key."""
    with serving.services.use() as service:
        upload = await _one(request, serving, service, key_in_path(key))
        added = await _write(request, serving, service, lambda changes: changes.add([upload], skip_broken=False))
        fields = await serving.read(request, partial(_fields, service, upload.key))
        return answer(fields, 201 if added.added else 200)


@router.patch(ITEM, openapi_extra=described(Changes), **answers("ItemAnswer"))
async def patch_item(
    request: Request, key: str, asked: Annotated[Changes, Depends(from_json(Changes))], serving: Given
) -> Response:
    """Change the metadata of an item."""
    with serving.services.use() as service:
        name = key_in_path(key)
        await _write(request, serving, service, lambda changes: changes.update(name, asked.metadata))
        return answer(await serving.read(request, partial(_fields, service, name)))


@router.delete(ITEM, status_code=204)
async def delete_item(request: Request, key: str, serving: Given) -> Response:
    """Remove an item."""
    with serving.services.use() as service:
        await _write(request, serving, service, lambda changes: changes.remove(key_in_path(key)))
    return Response(status_code=204)


def _index_of(corpus: Corpus) -> IndexCorpus:
    if not isinstance(corpus, IndexCorpus):
        raise Problem(409, f"the items of {STORES[corpus.store]} are not listed or changed here: expected an index")
    return corpus


def _fields(service: Service, key: str) -> dict[str, Any]:
    return item_fields(service, service.corpus.item(key))


async def _write(request: Request, serving: Serving, service: Service, change: Any) -> Any:
    index = _index_of(service.corpus).index
    settings = serving.settings
    changes = Uploads(index, settings.pictures, settings.max_megapixels)

    def run() -> Any:
        found = change(changes)
        service.items = len(index)
        return found

    return await serving.dispatcher.write(request, service, run)


async def _one(request: Request, serving: Serving, service: Service, key: str) -> Upload:
    """The item of a request to put it."""
    kind = media_type(request)
    if kind.startswith("image/") or kind == BYTES:
        _check_kind(service, "image")
        content = await body_of(request)
        if not content:
            raise InputError("the body is empty: expected a picture")
        return Upload(key, content)
    if not is_json(kind):
        raise Problem(415, f"the body has the type {kind[:80] or 'none'}: expected image/..., {BYTES} or JSON")
    (found,) = await _uploads(request, serving, service, [await from_json(NewItem)(request)], [key])
    return found


async def _several(request: Request, serving: Serving, service: Service) -> list[Upload]:
    """The items of a request to add several."""
    if media_type(request) == MULTIPART:
        return await _files(request, service)
    asked = await from_json(NewItems)(request)
    keys = [item.text if item.key is None else item.key for item in asked.items]
    if None in keys:
        raise InputError(f"items[{keys.index(None)}] has no `key`: expected one for each picture")
    return await _uploads(request, serving, service, asked.items, [key or "" for key in keys])


async def _uploads(
    request: Request, serving: Serving, service: Service, items: Sequence[NewItem], keys: Sequence[str]
) -> list[Upload]:
    for new in items:
        _check_kind(service, "image" if new.text is None else "text")
    texts = [new.picture for new in items if new.picture is not None]
    pictures = iter(await serving.pictures(request, service, texts))
    return [
        Upload(key, next(pictures) if new.text is None else new.text, new.metadata)
        for key, new in zip(keys, items, strict=True)
    ]


async def _files(request: Request, service: Service) -> list[Upload]:
    _check_kind(service, "image")
    metadata: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with form_of(request, MAX_ITEMS) as form:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if value.filename in files:
                    raise InputError(f"the form has two files of the name {brief(value.filename)}: expected one")
                files[value.filename or ""] = await value.read()
            elif name == "metadata":
                metadata = field_of_json(name, value)
            else:
                raise InputError(f"the form has the field {name[:80]!r}: expected files, and `metadata`")
    if not files:
        raise InputError("the form has no file: expected at least one")
    if not isinstance(metadata, dict) or not metadata.keys() <= files.keys():
        raise InputError('`metadata` is not an object of the files\' names: expected {"apple.jpg": {...}}')
    return [Upload(name, content, metadata.get(name)) for name, content in files.items()]


def _check_kind(service: Service, kind: str) -> None:
    corpus = _index_of(service.corpus)
    if corpus.kind != kind:
        raise InputError(f"this is an index of {corpus.kind}s: expected `{'picture' if kind == 'text' else 'text'}`")
    if kind == "image":
        check_pictures(service)


def _counts(added: Added) -> dict[str, Any]:
    skipped = [{"key": one.name, "reason": one.reason} for one in added.skipped]
    return {"added": added.added, "replaced": added.replaced, "unchanged": added.unchanged, "skipped": skipped}
