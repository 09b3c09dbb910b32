"""What a server searches: an index or a gallery, with keys by which clients name its items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from camp_sdk.arguments import Advance
from camp_sdk.gallery import Gallery
from camp_sdk.index.living import Index
from camp_sdk.results import Match
from camp_sdk.retriever import Retriever
from camp_sdk.server.problems import Problem


@dataclass(frozen=True)
class Item:
    """An item, as clients see it.

    Args:
        key: Its key.
        document: Its text; in a gallery of pictures, the picture's name.
        metadata: Its metadata; None in a gallery.
        file: Where its picture lies; None if it has none.
    """

    key: str
    document: str | None
    metadata: Mapping[str, Any] | None
    file: Path | None


@dataclass(frozen=True)
class Wanted:
    """What a ranking is asked for; the fields are arguments of `Retriever.rank`."""

    top_k: int
    shortlist: int | None = None
    where: Mapping[str, Any] | None = None
    offset: int = 0
    by: str | None = None
    precision: str | None = None


class Corpus(ABC):
    """An index, a gallery, or an index in parts.

    Args:
        kind: "image" or "text".
        roots: The folders below which pictures are read.
    """

    store: str  # "index", "gallery" or "parts"

    def __init__(self, kind: str, roots: Sequence[Path]) -> None:
        self.kind = kind
        self._roots = tuple(root.resolve() for root in roots)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rank(self, retriever: Retriever, query: Any, wanted: Wanted, advance: Advance) -> Any:
        """Rank the items, as `Retriever.rank` does.

        Args:
            retriever: The retriever.
            query: Texts, or a picture.
            wanted: The other arguments.
            advance: Receives the number of pairs in each block that was scored.
        """

    @abstractmethod
    def item(self, key: str) -> Item:
        """The item with a key.

        Raises:
            Problem: There is none: status 404.
        """

    @abstractmethod
    def select(self, keys: Sequence[str]) -> Gallery:
        """The items with some keys, in their order, as a gallery.

        Raises:
            Problem: One is not there: status 404.
        """

    @abstractmethod
    def item_of(self, match: Match) -> Item:
        """The item that a ranking found."""

    @abstractmethod
    def close(self) -> None:
        """Close the files."""

    def picture(self, item: Item) -> Path | None:
        """The picture of an item, if it lies below one of the folders for pictures, whatever an index says."""
        if item.file is None:
            return None
        try:
            file = item.file.resolve()
        except (OSError, RuntimeError, ValueError):  # links in a circle, a name that is too long
            return None
        return file if any(file.is_relative_to(root) for root in self._roots) and file.is_file() else None


class IndexCorpus(Corpus):
    """An index.

    Args:
        index: The index, open.
        roots: The folders below which pictures are read, besides its own.
    """

    store = "index"

    def __init__(self, index: Index, roots: Sequence[Path]) -> None:
        super().__init__(index.kind, [index.path.parent, *roots])
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def rank(self, retriever: Retriever, query: Any, wanted: Wanted, advance: Advance) -> Any:
        return _rank(retriever, query, self.index, wanted, advance)

    def item(self, key: str) -> Item:
        found = self.index.get(key)
        if found is None:
            raise no_item(key)
        return self.described(found.key, found.document, found.metadata)

    def select(self, keys: Sequence[str]) -> Gallery:
        missing = [key for key in keys if key not in self.index]
        if missing:
            raise no_item(missing[0])
        return self.index.gallery(keys)

    def item_of(self, match: Match) -> Item:
        return self.described(match.key or "", match.document, match.metadata)

    def described(self, key: str, document: str | None, metadata: Mapping[str, Any] | None) -> Item:
        """An item, of what the index says of it."""
        if self.kind == "text":
            return Item(key, document, metadata, None)
        return Item(key, None, metadata, None if document is None else Path(document))

    def close(self) -> None:
        self.index.close()


class GalleryCorpus(Corpus):
    """A gallery, whose items have their numbers as keys.

    Args:
        gallery: The gallery.
        folder: Its folder.
        roots: The folders below which pictures are read, besides the one around the gallery.
    """

    store = "gallery"

    def __init__(self, gallery: Gallery, folder: Path, roots: Sequence[Path]) -> None:
        super().__init__(gallery.kind, [folder.parent, *roots])
        self._gallery = gallery

    def __len__(self) -> int:
        return len(self._gallery)

    def rank(self, retriever: Retriever, query: Any, wanted: Wanted, advance: Advance) -> Any:
        return _rank(retriever, query, self._gallery, wanted, advance)

    def item(self, key: str) -> Item:
        return self._item(self._number(key))

    def select(self, keys: Sequence[str]) -> Gallery:
        return self._gallery.select([self._number(key) for key in keys])

    def item_of(self, match: Match) -> Item:
        return self._item(match.corpus_id)

    def close(self) -> None:
        """Nothing: a gallery is mapped into memory, and its files are closed."""

    def _item(self, number: int) -> Item:
        document, file = self._gallery.documents[number], self._gallery.files[number]
        if document is not None and self.kind == "image":
            document = PurePath(document).name
        return Item(str(number), document, None, None if file is None else Path(file))

    def _number(self, key: str) -> int:
        if not (key.isascii() and key.isdigit() and len(key) < 19 and int(key) < len(self._gallery)):
            raise no_item(key)
        return int(key)


def _rank(retriever: Retriever, query: Any, corpus: Any, wanted: Wanted, advance: Advance) -> Any:
    offset, where, by = wanted.offset, wanted.where, wanted.by
    precision = wanted.precision
    return retriever.rank(
        query, corpus, wanted.top_k, wanted.shortlist, advance, offset=offset, where=where, by=by, precision=precision
    )


def no_item(key: str) -> Problem:
    """The problem of a key that is not there."""
    shown = key if len(key) <= 80 else f"{key[:77]}..."
    return Problem(404, f"there is no item with the key {shown!r}")
