"""The first stage depends on the vectors and their order alone, however they are stored, and whatever lies between."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from camp_sdk.runtime.nearest import nearest, products, rows_of

Vectors = NDArray[np.float32]


def unit(rows: Vectors) -> Vectors:
    found: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


@pytest.fixture(scope="module")
def items() -> Vectors:
    """Unit vectors [3000, 32], of which many are equal, and many differ by a rounding."""
    rng = np.random.default_rng(0)
    rows = unit(rng.standard_normal((500, 32), dtype=np.float32))
    near = np.nextafter(rows, np.float32(2) * rng.integers(-1, 2, rows.shape).astype(np.float32))
    return np.concatenate([rows, rows, near, rows[::-1], near, rows])


@pytest.mark.parametrize("count", [1, 7, 300, 3000])
def test_equal_items_are_taken_in_their_order(items: Vectors, count: int) -> None:
    queries = unit(np.random.default_rng(1).standard_normal((5, 32), dtype=np.float32))
    for query, found in zip(queries, nearest(queries, items, count), strict=True):
        exact = items.astype(np.float64) @ query.astype(np.float64)
        chosen = exact[found]
        assert found.tolist() == sorted(set(found.tolist()))
        assert chosen.min() >= np.sort(exact)[::-1][count - 1] - 1e-12
        for index in found:  # whatever is equal to a chosen one and before it is chosen too
            equal = np.flatnonzero((items[:index] == items[index]).all(axis=1))
            assert set(equal) <= set(found)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parts_and_what_is_left_out_change_nothing(items: Vectors, data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    queries = unit(rng.standard_normal((3, 32), dtype=np.float32))
    among = np.sort(rng.choice(len(items), rng.integers(1, len(items)), replace=False))
    count = int(rng.integers(1, len(among) + 1))
    cuts = np.sort(rng.integers(0, len(items), data.draw(st.integers(0, 4))))
    expected = among[nearest(queries, np.ascontiguousarray(items[among]), count)]
    for parts in ([items], np.split(items, cuts)):
        np.testing.assert_array_equal(nearest(queries, parts, count, among=among), expected)
        np.testing.assert_array_equal(nearest(queries, parts, count, 1, among), expected)


def test_rows_and_products_of_parts(items: Vectors) -> None:
    parts = np.split(items, [10, 10, 2000])
    order = np.random.default_rng(2).permutation(len(items))
    np.testing.assert_array_equal(rows_of(parts, order), items[order])
    np.testing.assert_array_equal(products(items[0], parts, order), products(items[0], [items], np.arange(3000))[order])


def test_broken_vectors_come_last(items: Vectors) -> None:
    broken = items.copy()
    broken[:2900] = np.nan
    assert nearest(items[:1], broken, 100)[0].tolist() == list(range(2900, 3000))
    assert len(nearest(items[:1], broken, 200)[0]) == 200
