"""What an index holds and takes, for `Index.info`."""

from __future__ import annotations

from pathlib import Path

from camp_sdk.index.items import IndexInfo
from camp_sdk.index.schema import NUMBER_BITS
from camp_sdk.index.snapshot import Snapshot

FIRST = "SELECT length(CAST(tensors AS BLOB)) FROM tensors WHERE row BETWEEN ? AND ? LIMIT 1"


def describe(snapshot: Snapshot, path: Path) -> IndexInfo:
    """Describe an index.

    Args:
        snapshot: Its state.
        path: Its file.
    """
    state, connection = snapshot.state, snapshot.store.connection
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    (latest,) = connection.execute("SELECT max(generation) FROM generations").fetchone()
    begun = "SELECT count(*) FROM vectors WHERE row >= ?"
    first = connection.execute(FIRST, state.rows()).fetchone() if state.kind == "image" else None
    return IndexInfo(
        path=path,
        kind=state.kind,
        items=state.items,
        precision=state.precision,
        bundle=state.bundle,
        item_bytes=first and first[0],
        vector_bytes=4 * snapshot.store.layout.width,
        file_bytes=pages * size,
        free_bytes=free * size,
        reencoding=connection.execute(begun, (latest << NUMBER_BITS,)).fetchone()[0]
        if latest > state.generation
        else None,
    )
