"""What an index holds and takes, for `Index.info`."""

from __future__ import annotations

from pathlib import Path

from camp_sdk.index.items import IndexInfo
from camp_sdk.index.schema import NUMBER_BITS
from camp_sdk.index.snapshot import Snapshot


def describe(snapshot: Snapshot, path: Path) -> IndexInfo:
    """Describe an index.

    Args:
        snapshot: Its state.
        path: Its file.
    """
    state, layout, connection = snapshot.state, snapshot.store.layout, snapshot.store.connection
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    (latest,) = connection.execute("SELECT max(generation) FROM generations").fetchone()
    begun = "SELECT count(*) FROM vectors WHERE row >= ?"
    sized = bool(layout.parts) and not any(part.per_word for part in layout.parts)
    return IndexInfo(
        path=path,
        kind=state.kind,
        items=state.items,
        precision=state.precision,
        bundle=state.bundle,
        item_bytes=layout.nbytes(1) if sized else None,
        vector_bytes=4 * layout.width,
        file_bytes=pages * size,
        free_bytes=free * size,
        reencoding=connection.execute(begun, (latest << NUMBER_BITS,)).fetchone()[0]
        if latest > state.generation
        else None,
    )
