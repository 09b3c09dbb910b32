"""The calls of clients: which requests each makes, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

import camp_sdk.client.answers as answers
from camp_sdk.arguments import Advance, silent
from camp_sdk.client.adding import Adding
from camp_sdk.client.answers import ModelInfo, Page, Reloaded
from camp_sdk.client.asking import ask
from camp_sdk.client.changes import nulls_in, patch_to
from camp_sdk.client.contents import (
    batches,
    conditions,
    data_url,
    image_field,
    input_parts,
    item_path,
    pair_parts,
    post,
    to_json,
)
from camp_sdk.client.method import method
from camp_sdk.client.paging import PageRequest
from camp_sdk.client.wire import Reply, Request, Steps
from camp_sdk.index.arrivals import checked_keys
from camp_sdk.index.items import Added, IndexItem
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.results import Explanation, FloatArray, Ranking
from camp_sdk.runtime.errors import BusyError, InputError
from camp_sdk.runtime.messages import brief

MAX_PAIRS, MAX_INPUTS, MAX_ITEMS = 1000, 256, 256  # of a request, as the server takes them
UPDATES = 5  # times that an update is made again because another one came between


class Methods:
    """The calls that `Client` and `AsyncClient` share.

    Args:
        retries: How often a request is sent again at most.
    """

    def __init__(self, retries: int) -> None:
        self._retries = retries

    @method
    def rank(
        self,
        query: Any,
        top_k: int = 5,
        shortlist: int | None = None,
        *,
        offset: int = 0,
        where: Mapping[str, Any] | None = None,
        by: str | None = None,
    ) -> Steps[Ranking]:
        """Find the best matches of a query, as `Retriever.rank` does: pictures for a text, texts for a picture.

        Args:
            query: A text, or a picture: a `Path`, bytes, an open file, an image of Pillow or a uint8 array [H, W, 3].
                A string is always a text.
            top_k: The most matches, 1 to 1,000.
            shortlist: Score only this many items; 0 scores every item, and None takes the default of the server.
            offset: How many of the best matches to leave out, for the next page.
            where: Rank only items whose metadata meet these conditions, as `Index.where` takes them.
            by: "image" ranks pictures by their likeness to a picture. None ranks by the network.

        Returns:
            The matches, best first. ``document`` is None for pictures of an index, whose paths stay on the server.

        Raises:
            InputError: The server cannot use an argument.
            BundleError: The server's bundle has no global vectors, or takes no pictures.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        wanted = {"top_k": top_k, "offset": offset, "where": conditions(where), "shortlist": shortlist}
        if isinstance(query, str):
            if by is not None:
                raise InputError(f"by is {by!r}, which compares pictures: expected a picture (a path is a Path)")
            content = {"query": query}
        else:
            content = {"picture": data_url(query)}
            yield from self._check_kind(by)
        return answers.ranking((yield from self._ask(post("/v1/search", content | wanted))))

    @method
    def explain(self, text: str, image: Any) -> Steps[Explanation]:
        """Show what the network looked at when it scored one pair, as `Retriever.explain` does.

        Args:
            text: The text.
            image: The key of an item, which is a string, or a picture as `rank` takes it.

        Returns:
            The explanation. Its ``pixels`` are None, so that `Explanation.plot` draws the maps alone.

        Raises:
            InputError: There is no item with this key, or the text has no known word.
            BundleError: The server's bundle was exported without an explainer, or its items are texts.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        request = post("/v1/explain", {"query": text} | image_field(image))
        return answers.explanation((yield from self._ask(request)))

    @method
    def score(self, pairs: Iterable[tuple[Any, str]]) -> Steps[FloatArray]:
        """Score chosen pairs, as `Retriever.score` does; any number of them, in several requests.

        Args:
            pairs: P pairs (image, text); an image is the key of an item, which is a string, or a picture as `rank`
                takes it.

        Returns:
            Scores [P] float32; higher is better.

        Raises:
            InputError: There is no item with one of the keys, or an image or a text cannot be encoded.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        listed = list(pairs)
        found = np.empty(len(listed), np.float32)
        for places, text in batches(pair_parts(listed), MAX_PAIRS):
            reply = yield from self._ask(Request("POST", "/v1/score", f'{{"pairs": {text}}}'.encode()))
            found[places] = answers.scores(reply, len(places))
        return found

    @method
    def embed(self, items: Iterable[Any]) -> Steps[FloatArray]:
        """Make global vectors: of length 1, one for each side, whose dot products make the shortlist.

        Args:
            items: Texts, which are strings, and pictures as `rank` takes them, in any mixture.

        Returns:
            Vectors [n, d] float32, in the order of the items; [0, 0] for none.

        Raises:
            InputError: An item cannot be encoded.
            BundleError: The server's bundle has no global vectors.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        found = [np.empty((0, 0), np.float32)]
        for places, text in batches(input_parts(items), MAX_INPUTS):
            body = f'{{"model": "camp", "encoding_format": "base64", "input": {text}}}'.encode()
            reply = yield from self._ask(Request("POST", "/v1/embeddings", body))
            found.append(answers.vectors(reply, len(places)))
        return np.concatenate(found[1:] or found)

    @method
    def add(
        self,
        items: Iterable[Any],
        keys: Iterable[str] | None = None,
        metadata: Iterable[Mapping[str, Any] | None] | None = None,
        on_progress: Advance = silent,
        skip_broken: bool = False,
    ) -> Steps[Added]:
        """Add items to the server's index, as `Index.add` does; this takes a key for writing.

        Items are sent in requests of at most 256 of them and about 8 MiB. If the call ends early, those that were sent
        stay.

        Args:
            items: Pictures as `rank` takes them, or texts, which are strings; they may come from a generator.
            keys: A key for each item. Default: for a `Path`, the path, relative to the current folder if the file lies
                below that; for a text, the text; for bytes and arrays, a hash of the content.
            metadata: A dict for each item, of what JSON has. None keeps the metadata of a key that is there already.
            on_progress: Receives the number of items in each request that was answered.
            skip_broken: Leave out pictures that cannot be read, instead of raising.

        Returns:
            How many items were added, replaced, unchanged and left out.

        Raises:
            InputError: An item cannot be used, or the key is not one for writing; what was sent before stays.
            BundleError: The server searches a gallery, or takes no pictures.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        adding = Adding(skip_broken)
        for sent, text in batches(adding.parts(items, keys, metadata), MAX_ITEMS):
            reply = yield from self._ask(Request("POST", "/v1/items", f'{{"items": {text}}}'.encode()))
            on_progress(adding.answered(sent, *answers.added(reply)))
        return adding.result()

    @method
    def get(self, key: str) -> Steps[IndexItem | None]:
        """The item with a key; None if there is none.

        Args:
            key: The key.

        Raises:
            BundleError: The server searches a gallery.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        return (yield from self._get(key))

    @method
    def update(self, key: str, metadata: Mapping[str, Any]) -> Steps[None]:
        """Replace the metadata of an item; nothing is encoded. This takes a key for writing.

        Args:
            key: The key of the item.
            metadata: Its new metadata: a dict of what JSON has. No value of it, or of a dict in it, may be None, which
                the server takes for a field to remove.

        Raises:
            InputError: There is no such item, or the metadata cannot be used.
            BundleError: The server searches a gallery.
            BusyError: The server is busy, also after all retries, or others change the item all the time.
            CampError: The server cannot be reached, or failed.
        """
        wanted = json.loads(checked_metadata(metadata, brief(key)))
        if nulls_in(wanted):
            raise InputError("a value of `metadata` is None, which removes a field: leave the field out")
        found = yield from self._get(key)
        for _ in range(UPDATES):
            if found is None:
                raise InputError(f"the index has no item with the key {brief(key)}: add it first")
            body = to_json({"metadata": patch_to(found.metadata, wanted)}).encode()
            found = answers.item((yield from self._ask(Request("PATCH", item_path(key), body))))
            if found.metadata == wanted:
                return
        raise BusyError(f"the metadata of {brief(key)} are not as they were set, {UPDATES} times: others change them")

    @method
    def remove(self, keys: Iterable[str]) -> Steps[int]:
        """Remove items; keys that are not there are passed over. This takes a key for writing.

        Args:
            keys: The keys of the items.

        Returns:
            The number of items removed.

        Raises:
            InputError: ``keys`` is not a list of keys, or the server's key is not one for writing.
            BundleError: The server searches a gallery.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        removed = 0
        for path in [item_path(key) for key in checked_keys(keys)]:
            reply = yield from self._ask(Request("DELETE", path, may_miss=True))
            removed += reply.status != 404
        return removed

    @method
    def thumbnail(self, key: str) -> Steps[bytes]:
        """The picture of an item as a JPEG of at most 256 pixels a side.

        Args:
            key: The key of the item.

        Raises:
            InputError: There is no such item, or the server has no picture of it.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        return answers.jpeg((yield from self._ask(Request("GET", item_path(key, "/thumbnail")))))

    @method
    def info(self) -> Steps[ModelInfo]:
        """Describe the network of the server, and what it searches.

        Raises:
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or failed.
        """
        return (yield from self._info())

    @method
    def reload(self) -> Steps[Reloaded]:
        """Have the server open its bundle and its index again; no request fails meanwhile.

        This takes a key for writing.

        Raises:
            InputError: The key is not one for writing.
            BusyError: The server is busy, also after all retries.
            CampError: The server cannot be reached, or what it should open is broken; it goes on as before.
        """
        return answers.reloaded((yield from self._ask(Request("POST", "/v1/reload"))))

    def _ask(self, request: Request) -> Steps[Reply]:
        return ask(request, self._retries)

    def _info(self) -> Steps[ModelInfo]:
        return answers.model_info((yield from self._ask(Request("GET", "/v1/models"))))

    def _get(self, key: str) -> Steps[IndexItem | None]:
        reply = yield from self._ask(Request("GET", item_path(key), may_miss=True))
        return None if reply.status == 404 else answers.item(reply)

    def _check_kind(self, by: str | None) -> Steps[None]:
        """Check that what the server searches is what a picture is compared with; the server itself goes by that."""
        kind = (yield from self._info()).kind
        if by not in (None, "image") or (by == "image" and kind != "image"):
            raise InputError(f"by is {by!r}: expected 'image' with an index of images, or None")
        if by is None and kind == "image":
            raise InputError("the query is a picture, and so are the items: expected a text, or by='image'")

    def _page(self, asked: PageRequest) -> Steps[Page]:
        return answers.page((yield from self._ask(asked.request())), asked.offset)
