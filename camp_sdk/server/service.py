"""What is served at a time: a retriever with its corpus, which another one replaces when the server reloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from camp_sdk.cluster.merging import Shards
from camp_sdk.cluster.searching import LocalShards, checked_parts
from camp_sdk.cluster.shard import Shard
from camp_sdk.first_pass import passes_of
from camp_sdk.gallery import Gallery
from camp_sdk.index.opening import open_index
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.engines.base import Arrays, Engine
from camp_sdk.runtime.open_engines import OpenEngines
from camp_sdk.search import first_pass_of, shortlist_of
from camp_sdk.server.corpus import Corpus, GalleryCorpus, IndexCorpus
from camp_sdk.server.problems import RETRY_S, Problem
from camp_sdk.server.settings import Settings
from camp_sdk.server.sharded import PartsCorpus
from camp_sdk.server.turns import Turns

INDEX_TIMEOUT_S = 5.0  # for another process to finish writing
USED_AT_ONCE = ("text", "scorer")  # graphs; the others are opened when they are first needed


class Service:
    """A retriever with its corpus, which are closed when nobody uses them any more.

    Args:
        retriever: The retriever.
        corpus: What it searches.
        root_path: Where links begin.
        first_pass: The precision of the first pass of searches; None for one pass.
    """

    def __init__(
        self, retriever: Retriever, corpus: Corpus, root_path: str = "", first_pass: str | None = None
    ) -> None:
        self.retriever, self.corpus, self.root_path, self.first_pass = retriever, corpus, root_path, first_pass
        self.opened = int(time.time())
        self.items = len(corpus)  # refreshed when something was done with it
        self._users, self._lock = 1, threading.Lock()

    @classmethod
    def open(cls, settings: Settings, turns: Turns) -> Service:
        """Open what the settings name; graphs that every search needs are opened too.

        Args:
            settings: The settings.
            turns: The turns at the processor that encoding takes when items are added.

        Raises:
            CampError: The bundle or the corpus cannot be opened.
            OSError: A file cannot be read.
        """
        passes = passes_of(settings.precision)
        options = settings.backend, passes.precision, settings.threads, settings.memory_budget
        retriever = Retriever(settings.bundle, *options)
        try:
            for graph in USED_AT_ONCE:
                retriever.model.engines[graph]
            first_pass_of(retriever.model, passes.first, passes.rescore, 1)
            return cls(retriever, _corpus(settings, retriever, turns), settings.root_path, passes.first)
        except BaseException:
            retriever.close()
            raise

    @property
    def name(self) -> str:
        """The name of the model in answers."""
        return f"camp-{self.retriever.bundle.fingerprint[:12]}"

    @cached_property
    def has_vectors(self) -> bool:
        """Whether the bundle has global vectors."""
        return self.retriever.bundle.manifest.has_vectors

    @cached_property
    def reads_pictures(self) -> bool:
        """Whether the bundle takes pictures."""
        return self.retriever.bundle.manifest.pixels is not None

    def pairs(self, depth: int, shortlist: int | None) -> int:
        """How many pairs a search scores at most."""
        scored = shortlist_of(self.retriever.model, depth, shortlist)
        return min(self.items, scored) if scored else self.items

    def retain(self) -> None:
        """Count another user."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Count a user less; the last one closes everything."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.corpus.close()
            self.retriever.close()


class Services:
    """The service in use.

    Args:
        settings: The settings.
        turns: The turns at the processor.
        changed: Is called with each new service.
    """

    def __init__(self, settings: Settings, turns: Turns, changed: Callable[[Service], None]) -> None:
        self._settings, self._turns, self._changed = settings, turns, changed
        self._lock, self._loading = threading.Lock(), threading.Lock()
        self._service: Service | None = None
        self.draining = False

    @property
    def hidden(self) -> Mapping[str, str]:
        """Paths that answers do not show, with what they show in their place."""
        settings = self._settings
        named = (("bundle", settings.bundle), ("index", settings.index or settings.gallery or settings.parts))
        # The longest forms first, so that no part of one is left.
        return {
            str(form): f"the {name}"
            for name, path in named
            if path is not None
            for form in (path.resolve(), path.absolute(), path)
            if len(form.parts) > 1  # a name alone says nothing of the machine, and may be a word of any message
        }

    @property
    def ready(self) -> bool:
        """Whether requests are answered, and more of them should come."""
        return self._service is not None and not self.draining

    @property
    def items(self) -> int:
        """The number of items that are searched."""
        service = self._service
        return 0 if service is None else service.items

    def load(self) -> Service:
        """Open everything anew, and then take the place of the service in use, which ends with its last request.

        Raises:
            CampError: Something cannot be opened; the service in use stays.
            OSError: A file cannot be read; likewise.
        """
        with self._loading:
            fresh = Service.open(self._settings, self._turns)
            with self._lock:
                old, self._service = self._service, fresh
            self._changed(fresh)
        if old is not None:
            old.release()
        return fresh

    @contextmanager
    def use(self) -> Iterator[Service]:
        """The service in use, which stays open at least for as long as the context.

        Raises:
            Problem: It is not loaded yet: status 503.
        """
        with self._lock:
            service = self._service
            if service is None:
                raise Problem(503, "the server is loading: try again", {"Retry-After": str(RETRY_S)})
            service.retain()
        try:
            yield service
        finally:
            service.release()

    def close(self) -> None:
        """Close the service in use when its last request has ended."""
        with self._lock:
            service, self._service = self._service, None
        if service is not None:
            service.release()


def _corpus(settings: Settings, retriever: Retriever, turns: Turns) -> Corpus:
    roots = [*settings.picture_root, *([settings.pictures] if settings.pictures else [])]
    if settings.gallery is not None:
        gallery: Gallery = retriever.open_gallery(settings.gallery)
        return GalleryCorpus(gallery, settings.gallery.absolute(), roots)
    if settings.parts is not None:
        return _parts(settings, settings.parts, retriever, roots)
    # Only adding uses the index's own model; rankings use the retriever's.
    engines = cast(OpenEngines, _EnginesInTurn(retriever.model.engines, turns))  # all that encoding uses of them
    model = replace(retriever.model, engines=engines)
    return IndexCorpus(open_index(model, settings.index, False, (None, None), INDEX_TIMEOUT_S, settings.ann), roots)


def _parts(settings: Settings, folder: Path, retriever: Retriever, roots: Sequence[Path]) -> Corpus:
    parts = checked_parts(retriever, folder.absolute())
    divided = parts.divided(settings.shards)
    shards: Shards
    if settings.shards_app is None:
        shards = LocalShards([Shard(retriever, [parts.paths[part] for part in own]) for own in divided])
    else:
        from camp_sdk.cluster.ray_shards import RayShards  # here: it needs the extra ray

        shards = RayShards(settings.shards_app, len(divided), settings.shard_limit)
    return PartsCorpus(retriever, parts, shards, divided, roots)


class _EnginesInTurn:
    """Engines whose runs take turns with those that score: adding many pictures does not stop searches."""

    def __init__(self, engines: OpenEngines, turns: Turns) -> None:
        self._engines, self._turns = engines, turns

    def __getitem__(self, graph: str) -> _EngineInTurn:
        return _EngineInTurn(self._engines[graph], self._turns)


class _EngineInTurn:
    def __init__(self, engine: Engine, turns: Turns) -> None:
        self._engine, self._turns = engine, turns

    def run(self, feeds: Mapping[str, Any]) -> Arrays:
        with self._turns:
            return self._engine.run(feeds)
