"""The first stage of a ranking: the items whose global vectors are nearest to a query's, exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.blocks import GROUP_TEXTS, batches
from camp_sdk.runtime.threads import available_cores, map_ahead

Vectors = NDArray[np.float32]
Indices = NDArray[np.intp]

NEAREST_BYTES = 64 << 20
CHUNK_ROWS = 1 << 15  # rows multiplied, or copied from a file, at a time
LARGE_PRODUCT = 1 << 26  # multiplications, from which on BLAS is faster, although its threads wait for more
FEW = 4  # less than a quarter of the items: these are copied before they are multiplied


def nearest(
    queries: Vectors,
    items: Vectors | Sequence[Vectors],
    count: int,
    memory_budget_bytes: int | None = None,
    among: Indices | None = None,
) -> Indices:
    """Find the items whose vectors have the largest dot products with each query's vector.

    The choice depends on the vectors and their order alone: near its border, products are computed again in float64,
    one by one, and equal ones are taken in the order of the items. Otherwise, the last bits of a product of matrices
    depend on how many rows it has, and a shortlist on where its items are stored.

    Args:
        queries: query vectors [Q, d].
        items: item vectors [M, d], or parts of them, one after another; they may be memory-mapped.
        count: the number of items to find for each query.
        memory_budget_bytes: limits the number of queries computed at a time; each takes 16 bytes per item. At least one
            query is computed at a time. None, or a larger budget, counts as 64 MiB.
        among: the indices of the items to choose from, ascending; None for all of them.

    Returns:
        Item indices [Q, count], in the order of the items.
    """
    parts = [items] if isinstance(items, np.ndarray) else list(items)
    total = sum(map(len, parts))
    at_once = min(memory_budget_bytes or NEAREST_BYTES, NEAREST_BYTES) // (16 * total)
    found = [
        _chosen(query, row, parts, count, among)
        for some in batches(np.arange(len(queries)), min(max(1, at_once), GROUP_TEXTS))
        for query, row in zip(queries[some], _products(queries[some], parts, among), strict=True)
    ]
    return np.stack(found)


def rows_of(parts: Sequence[Vectors], indices: Indices) -> Vectors:
    """Copy some rows of an array that is stored in parts.

    Args:
        parts: the parts [M_k, d], one after another.
        indices: the rows, in any order.
    """
    if len(parts) == 1:
        return np.asarray(parts[0][indices])
    out = np.empty((len(indices), parts[0].shape[1]), np.float32)
    for start, part in _starts(parts):
        inside = (indices >= start) & (indices < start + len(part))
        out[inside] = part[indices[inside] - start]
    return out


def products(query: Vectors, parts: Sequence[Vectors], indices: Indices) -> NDArray[np.float64]:
    """Dot products whose last bit does not depend on how many there are.

    Args:
        query: a vector [d].
        parts: the parts [M_k, d] of the items' vectors, one after another.
        indices: the items.
    """
    wide = query.astype(np.float64)
    blocks = [(rows_of(parts, some) * wide).sum(axis=1) for some in batches(indices, CHUNK_ROWS // 4)]
    return np.concatenate(blocks)


def _products(queries: Vectors, parts: Sequence[Vectors], among: Indices | None) -> Vectors:
    total = sum(map(len, parts))
    if among is not None and len(among) < total // FEW:
        out = np.empty((len(queries), len(among)), np.float32)
        for start in range(0, len(among), CHUNK_ROWS):
            some = among[start : start + CHUNK_ROWS]
            _multiply(queries, rows_of(parts, some), out[:, start : start + len(some)])
        return out
    out = np.empty((len(queries), total), np.float32)
    for start, part in _starts(parts):
        _multiply(queries, part, out[:, start : start + len(part)])
    return out if among is None else out[:, among]


def _multiply(queries: Vectors, items: Vectors, out: Vectors) -> None:
    if len(queries) > 1 and queries.size * len(items) >= LARGE_PRODUCT:
        np.matmul(queries, items.T, out=out)
        return
    # Not with BLAS: its threads would keep their cores busy for about 20 ms after the product, waiting for another,
    # while the shortlists are scored on these cores.
    step = CHUNK_ROWS // len(queries)

    def multiply_chunk(start: int) -> None:
        rows = slice(start, start + step)
        for query, found in zip(queries, out, strict=True):
            np.einsum("nd,d->n", items[rows], query, out=found[rows])

    if len(items) <= step:
        multiply_chunk(0)
        return
    chunks = range(0, len(items), step)
    with closing(map_ahead(multiply_chunk, chunks, available_cores(), len(chunks))) as multiplied:
        deque(multiplied, maxlen=0)


def _starts(parts: Sequence[Vectors]) -> Iterator[tuple[int, Vectors]]:
    start = 0
    for part in parts:
        yield start, part
        start += len(part)


def _chosen(
    query: Vectors, found: NDArray[Any], parts: Sequence[Vectors], count: int, among: Indices | None
) -> Indices:
    found[np.isnan(found)] = -np.inf  # of a damaged file: NaN has no place in an order
    last = np.partition(found, len(found) - count)[len(found) - count]
    # The most by which the sum of d products of float32 numbers may be off, for vectors of length 1.
    margin = len(query) * np.finfo(np.float32).eps * max(1.0, float(np.abs(last)) if np.isfinite(last) else 1.0)
    close = np.flatnonzero(found >= last - margin)
    indices = close if among is None else among[close]
    if len(indices) == count:
        return indices
    order = np.lexsort((indices, -products(query, parts, indices)))[:count]
    return np.sort(indices[order])
