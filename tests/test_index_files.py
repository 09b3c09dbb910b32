"""An index is data that may come from anywhere: what does not fit is one clear error, and runs nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BundleError, CampError, Retriever
from camp_sdk.index import columns, vector_file
from tests.helpers.tiny import CAPTIONS

Features = NDArray[np.float32]
QUERY = "a small red circle"


@pytest.fixture(scope="module")
def made(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of ten images. Read only."""
    path = tmp_path_factory.mktemp("made") / "photos.index"
    images = np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32)
    with feature_retriever.open_index(path, create=True, precision="int8") as index:
        index.add(images, map(str, range(10)), [{"n": n, "tags": ["a"]} for n in range(10)])
    return path


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy, for tests that break it."""
    return Path(shutil.copy(made, tmp_path / "photos.index"))


def run(path: Path, *statements: str) -> None:
    """Change the file of an index behind its back."""
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def use(retriever: Retriever, path: Path) -> None:
    """Every call that reads an index."""
    with retriever.open_index(path) as index:
        retriever.rank(QUERY, index, 10)
        retriever.rank(QUERY, index, 3, 5, where={"n": {"gte": 3}})
        list(index), list(index.keys()), index.info(), index.get("3")
        index.update("3", {"m": 1})
        index.remove(["3"])


# What is no index


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_file_that_is_no_index(feature_retriever: Retriever, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "photos.index"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"photos\.index"):
        feature_retriever.open_index(path)


def test_a_folder_a_pipe_and_another_database(feature_retriever: Retriever, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a file: expected the file of an index"):
        feature_retriever.open_index(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BundleError, match="is not a file"):
            feature_retriever.open_index(tmp_path / "pipe")
    run(tmp_path / "other.db", "CREATE TABLE a (b)")
    with pytest.raises(BundleError, match="is a database, but not an index of camp-sdk"):
        feature_retriever.open_index(tmp_path / "other.db")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER DELETE ON items BEGIN DELETE FROM items; END",
        "CREATE TRIGGER t AFTER UPDATE ON state BEGIN SELECT load_extension('x'); END",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TABLE extra (a)",
        "CREATE INDEX i ON items (metadata)",
        "CREATE INDEX i ON items (length(metadata))",
        "DROP TABLE free",
        "ALTER TABLE items ADD COLUMN more TEXT DEFAULT 9",
        "ALTER TABLE fields RENAME TO pairs",
        "ANALYZE",
    ],
)
def test_other_tables_and_whatever_would_run(feature_retriever: Retriever, path: Path, statement: str) -> None:
    run(path, statement)
    with pytest.raises(BundleError, match=r"does not have the tables of an index \("):
        feature_retriever.open_index(path)


def test_a_view_in_place_of_a_table(feature_retriever: Retriever, path: Path) -> None:
    run(path, "ALTER TABLE items RENAME TO hidden", "CREATE VIEW items AS SELECT * FROM hidden")
    with pytest.raises(BundleError, match="does not have the tables of an index"):
        feature_retriever.open_index(path)


def test_a_later_format(feature_retriever: Retriever, path: Path) -> None:
    run(path, "PRAGMA user_version = 2")
    with pytest.raises(BundleError, match="is an index of format 2, expected 1: update camp-sdk"):
        feature_retriever.open_index(path)


# Values that no index holds


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM state",
        "UPDATE state SET kind = 'video'",
        "UPDATE state SET generation = 3",
        "UPDATE state SET version = -1",
        "UPDATE state SET items = 'many'",
        "UPDATE state SET items = 11",
        "UPDATE state SET items = 9",
        "UPDATE state SET name = zeroblob(1000)",
        "UPDATE state SET next_position = 9",
        "UPDATE state SET next_position = 9223372036854775807",
        "UPDATE generations SET precision = 'float64'",
        "UPDATE generations SET precision = 'float16'",
        "UPDATE generations SET shapes = '{}'",
        "UPDATE generations SET shapes = NULL",
        "UPDATE generations SET shapes = '[1'",
        "UPDATE generations SET shapes = '" + "[" * 60000 + "'",
        "UPDATE generations SET shapes = replace(shapes, '5', '5000000')",
        "UPDATE generations SET shapes = replace(shapes, '5', '-5')",
        "UPDATE generations SET shapes = zeroblob(70000)",
        "UPDATE items SET metadata = '{'",
        "UPDATE items SET metadata = '[]'",
        "UPDATE items SET metadata = zeroblob(9)",
        "UPDATE items SET metadata = '" + '{"a":' * 9000 + "'",
        "UPDATE items SET key = CAST(x'ff' AS TEXT) WHERE number = 3",
        "UPDATE items SET position = 'x' WHERE number = 3",
        "UPDATE items SET position = -5 WHERE number = 3",
        "UPDATE items SET text = x'00' WHERE number = 3",
        "DELETE FROM items WHERE number = 4",
        "UPDATE vectors SET vector = zeroblob(3)",
        "UPDATE vectors SET vector = 'text'",
        "UPDATE vectors SET length = 'x'",
        "UPDATE vectors SET length = -1",
        "DELETE FROM vectors WHERE row % 10 = 4",
        "UPDATE tensors SET tensors = zeroblob(1000000)",
        "UPDATE tensors SET tensors = 'text'",
        "UPDATE tensors SET tensors = 7",
        "DELETE FROM tensors WHERE row % 10 = 4",
    ],
)
def test_values_that_no_index_holds(feature_retriever: Retriever, path: Path, statement: str) -> None:
    run(path, statement)
    with pytest.raises(BundleError):
        use(feature_retriever, path)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO free VALUES (3)",
        "INSERT INTO free VALUES (-3)",
        "UPDATE fields SET number = number + 1000",
        "UPDATE fields SET field = x'00', number = number + 90 WHERE field = 'n'",
        "DELETE FROM fields",
        "INSERT INTO removed VALUES (1, 5)",
        "UPDATE items SET size = 'x', mtime_ns = 'y', digest = 'z', file = 'w'",
        "UPDATE vectors SET vector = x'" + struct.pack("<16f", *[float("nan")] * 16).hex() + "'",
    ],
)
def test_values_that_do_no_harm_or_are_refused(
    feature_retriever: Retriever, path: Path, features: Features, statement: str
) -> None:
    run(path, statement)
    with suppress(CampError):
        use(feature_retriever, path)
    with suppress(CampError), feature_retriever.open_index(path) as index:
        index.add(features, map(str, range(10)))


def test_an_item_with_damaged_metadata_can_be_removed(feature_retriever: Retriever, path: Path) -> None:
    run(path, "UPDATE items SET metadata = '{' WHERE key = '3'")
    with feature_retriever.open_index(path) as index:
        with pytest.raises(BundleError, match="the metadata of '3' are damaged"):
            index.get("3")
        index.update("3", {"n": 3})
        assert index.get("3") is not None
        assert [item.key for item in index.where({"n": 3})] == ["3"]
        assert index.remove(["3"]) == 1
        assert [item.key for item in index.where({"n": 3})] == []


@pytest.mark.parametrize("seed", range(40))
def test_damaged_pages(feature_retriever: Retriever, path: Path, seed: int) -> None:
    """Whatever bytes of the file are changed, the answer is an error of this package, or an answer."""
    random, content = Random(seed), bytearray(path.read_bytes())
    for _ in range(random.choice([1, 10, 300])):
        content[random.randrange(100 if seed % 2 else 0, len(content))] = random.randrange(256)
    path.write_bytes(content[: random.choice([len(content), random.randrange(len(content))])])
    with suppress(CampError, OSError):
        use(feature_retriever, path)


# The derived file


@pytest.fixture
def filed(feature_retriever: Retriever, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, list[str]]:
    """An index whose vectors are in a file: both, and what a query finds."""
    monkeypatch.setattr(columns, "FILE_ROWS", 2)
    with feature_retriever.open_index(path) as index:
        found = [str(match.key) for match in feature_retriever.rank(QUERY, index, 4, 4)]
    vectors = path.with_name("photos.index-vectors")
    assert vectors.is_file()
    return path, vectors, found


def found_in(retriever: Retriever, path: Path) -> list[str]:
    with retriever.open_index(path) as index:
        return [str(match.key) for match in retriever.rank(QUERY, index, 4, 4)]


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_of_vectors_is_made_again(
    feature_retriever: Retriever, filed: tuple[Path, Path, list[str]], seed: int
) -> None:
    path, vectors, expected = filed
    random, whole = Random(seed), vectors.read_bytes()
    content = bytearray(whole)
    used = [*range(vector_file.HEADER.size + 4), *range(vector_file.HEADER_BYTES, len(content))]
    content[random.choice(used)] ^= 1 << random.randrange(8)
    vectors.write_bytes(content if seed % 3 else content[: random.randrange(len(content))])
    assert found_in(feature_retriever, path) == expected
    assert vectors.read_bytes() == whole


@pytest.mark.parametrize("kind", ["none", "folder", "pipe", "empty", "of another index", "of an earlier state"])
def test_a_file_of_vectors_of_another_kind(
    feature_retriever: Retriever, filed: tuple[Path, Path, list[str]], features: Features, kind: str, tmp_path: Path
) -> None:
    path, vectors, expected = filed
    earlier = vectors.read_bytes()
    if kind != "of an earlier state":
        vectors.unlink()
    if kind == "folder":
        vectors.mkdir()
    if kind == "pipe":
        os.mkfifo(vectors)
    if kind == "empty":
        vectors.touch()
    if kind == "of another index":
        with feature_retriever.open_index(tmp_path / "other.index", create=True) as other:
            other.add(features[::-1])
            feature_retriever.rank(QUERY, other, 4, 4)
        shutil.copy(tmp_path / "other.index-vectors", vectors)
    if kind == "of an earlier state":
        with feature_retriever.open_index(path) as index:
            index.remove(expected[:1])
            expected = found_in(feature_retriever, path)
        vectors.write_bytes(earlier)
    assert found_in(feature_retriever, path) == expected


def test_a_file_of_vectors_that_lies(feature_retriever: Retriever, filed: tuple[Path, Path, list[str]]) -> None:
    """With check sums that fit, numbers that no item has are found out when they are read."""
    path, vectors, _ = filed
    mapped = vector_file.read_vectors(vectors)
    assert mapped is not None
    rows = mapped.positions, mapped.numbers[::-1] + 0, mapped.lengths + 9, np.array(mapped.vectors) * np.nan
    vector_file.write_vectors(vectors, mapped.origin, [rows])
    with suppress(CampError):
        found_in(feature_retriever, path)


def test_remains_of_killed_writers_are_deleted_when_they_are_old(
    feature_retriever: Retriever, filed: tuple[Path, Path, list[str]]
) -> None:
    path, vectors, expected = filed
    old, new = (vectors.with_name(f".photos.index-vectors.{name}") for name in ("old_____", "new_____"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").touch()
    os.utime(old, (1, 1))
    vectors.unlink()
    assert found_in(feature_retriever, path) == expected
    assert (old.exists(), new.exists()) == (False, True)


# Where nothing can be written


def test_an_index_that_cannot_be_written_is_read(
    feature_retriever: Retriever, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as root, whom no permission stops: SQLite's refusal is played."""
    from camp_sdk.index import database

    connect = database._connect

    def refuse(uri: str, timeout_s: float) -> sqlite3.Connection:
        if "immutable" not in uri:
            raise sqlite3.OperationalError("unable to open database file")
        return connect(uri, timeout_s)

    monkeypatch.setattr(database, "_connect", refuse)
    with feature_retriever.open_index(path) as index:
        assert len(feature_retriever.rank(QUERY, index, 10)) == len(list(index)) == 10
        with pytest.raises(PermissionError, match="the index cannot be written here"):
            index.remove(["3"])


def test_a_file_that_another_takes_the_place_of(feature_retriever: Retriever, path: Path, made: Path) -> None:
    with feature_retriever.open_index(path) as index:
        Path(shutil.copy(made, path.with_name("other"))).replace(path)
        with index._database.reading():  # the first connection is in use
            for call in (index.keys().__next__, lambda: feature_retriever.rank(QUERY, index)):
                with pytest.raises(BundleError, match="was replaced by another file while it was open"):
                    call()


def test_nothing_is_left_beside_a_closed_index(feature_retriever: Retriever, path: Path) -> None:
    with feature_retriever.open_index(path) as index:
        index.update("3", {})
    assert {file.name for file in path.parent.iterdir()} == {"photos.index"}


def test_texts_with_wrong_lengths(feature_retriever: Retriever, tmp_path: Path, features: Features) -> None:
    path = tmp_path / "texts.index"
    with feature_retriever.open_index(path, create=True, kind="text") as index:
        index.add(CAPTIONS)
    for length in (0, 1, 1 << 30, 1 << 40):
        run(path, f"UPDATE vectors SET length = {length} WHERE row & 1023 = 3")
        with feature_retriever.open_index(path) as index, pytest.raises(BundleError):
            feature_retriever.rank(features[0], index)
