"""Readers beside a writer, a second writer, kills, full disks, and another bundle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BundleError, BusyError, Index, InputError, Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.index import database, reencoding
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH, save_tiny_checkpoint

Features = NDArray[np.float32]
QUERY = "a small red circle"
ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("CAMP_INDEX_KILLS", "6"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "photos.index"


@pytest.fixture
def index(feature_retriever: Retriever, path: Path, features: Features) -> Iterator[Index]:
    with feature_retriever.open_index(path, create=True) as opened:
        opened.add(features, map(str, range(10)), [{"n": n} for n in range(10)])
        yield opened


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another network that takes the same features."""
    folder = tmp_path_factory.mktemp("other")
    return export_bundle(save_tiny_checkpoint(folder / "c.ckpt", "scalar", False, seed=4), folder / "bundle").folder


# One consistent state


def test_a_ranking_sees_one_state(feature_retriever: Retriever, index: Index, path: Path) -> None:
    expected = feature_retriever.rank(QUERY, index, 10)
    with feature_retriever.open_index(path) as writer:

        def change(pairs: int) -> None:
            writer.remove([match.key for match in expected[:9] if match.key])

        assert feature_retriever.rank(QUERY, index, 10, on_progress=change) == expected
        assert [match.key for match in feature_retriever.rank(QUERY, index, 10)] == [expected[9].key]


def test_iteration_sees_one_state(index: Index) -> None:
    found = []
    for item in index:
        index.remove(["9", "3"])
        found.append(item.key)
    assert found == [str(number) for number in range(10)]
    assert len(index) == 8


def test_readers_beside_a_writer_find_committed_states(
    feature_retriever: Retriever, path: Path, features: Features
) -> None:
    """Every commit holds items of one value alone: a reader that sees two of them has seen half a commit."""
    with feature_retriever.open_index(path, create=True) as index, feature_retriever.open_index(path) as other:
        index.add(features, map(str, range(10)), [{"step": 0}] * 10)
        stopped = threading.Event()

        def read(one: Index) -> int:
            steps = []
            while not stopped.is_set() or not steps:
                found = feature_retriever.rank(QUERY, one, 10, 10)
                assert len(found) == 10
                assert len({str(match.metadata) for match in found}) == 1
                steps.append(found[0].metadata["step"])  # type: ignore[index]  # it has metadata
            assert steps == sorted(steps)
            return len(set(steps))

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, one) for one in (index, index, other, other)]
            try:
                for step in range(1, 30):
                    index.add(features + step, map(str, range(10)), [{"step": step}] * 10)
            finally:
                stopped.set()
            assert max(reader.result() for reader in readers) > 1


READ = """
import sys
from camp_sdk import Retriever
with Retriever(sys.argv[1], "onnxruntime") as retriever, retriever.open_index(sys.argv[2]) as index:
    print("ready", flush=True)
    for line in sys.stdin:
        found = retriever.rank("a small red circle", index, 99, 99)
        print(len({match.metadata["step"] for match in found}), len(found), flush=True)
"""


def test_other_processes_read_what_is_committed(
    feature_retriever: Retriever, feature_bundle: Path, path: Path, features: Features
) -> None:
    with feature_retriever.open_index(path, create=True) as index:
        index.add(features, map(str, range(10)), [{"step": 0}] * 10)
        command = [sys.executable, "-c", READ, str(feature_bundle), str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
            for step in range(1, 6):
                index.add(features[: 10 - step] + step, map(str, range(10 - step)), [{"step": step}] * (10 - step))
                index.remove(str(n) for n in range(10 - step, 10))
                print(file=reader.stdin, flush=True)
                assert reader.stdout.readline().split() == ["1", str(10 - step)]
            reader.stdin.close()


def test_several_make_one_index(feature_retriever: Retriever, path: Path, features: Features) -> None:
    def add(number: int) -> None:
        with feature_retriever.open_index(path, create=True) as index:
            index.add(features, [f"{number}, {row}" for row in range(10)])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(add, range(6)))
    with feature_retriever.open_index(path) as index:
        assert len(set(index.keys())) == len(index) == 60


# One writer


def test_a_second_writer_waits_and_then_says_who_writes(feature_retriever: Retriever, index: Index, path: Path) -> None:
    with feature_retriever.open_index(path, timeout_s=0.2) as second:
        with index._changing() as changes:
            changes.set_metadata("3", "{}")
            with pytest.raises(
                BusyError, match=rf"being written by process {os.getpid()} on '.+', since '20.+Z?'; waited 0.2"
            ):
                second.update("4", {})
            assert second.get("3").metadata == {"n": 3}  # type: ignore[union-attr]  # it is there
        second.update("4", {})
    with ThreadPoolExecutor(1) as pool, index._changing() as changes:
        changes.set_metadata("5", "{}")
        waiting = pool.submit(index.update, "6", {"done": True})
        time.sleep(0.05)
        assert not waiting.done()
    assert index.get("6").metadata == {"done": True}  # type: ignore[union-attr]  # it is there


def test_an_error_undoes_the_whole_change(index: Index) -> None:
    before = list(index)

    def fail() -> None:
        with index._changing() as changes:
            changes.remove("1")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        fail()
    assert list(index) == before
    index.update("1", {})


def test_a_full_disk_leaves_the_index_as_it_was(index: Index, features: Features) -> None:
    before = list(index)
    with index._database._connection() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    many = np.concatenate([features] * 30)
    with pytest.raises(OSError, match="no space left for this change, the index is as before it"):
        index.add(many, map(str, range(100, 400)), [{"text": "x" * 999}] * 300)
    assert list(index) == before
    with index._database._connection() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    index.add(many, map(str, range(100, 400)))
    assert len(index) == 310


def test_vectors_stay_in_memory_where_no_file_can_be_written(
    feature_retriever: Retriever, index: Index, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from camp_sdk.index import columns

    def refuse(*arguments: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(columns, "FILE_ROWS", 2)
    monkeypatch.setattr(columns, "write_vectors", refuse)
    expected = feature_retriever.rank(QUERY, index, 5, 5)
    with feature_retriever.open_index(path) as other:
        other.update("3", {})
        assert [match.key for match in feature_retriever.rank(QUERY, other, 5, 5)] == [m.key for m in expected]
    assert not path.with_name("photos.index-vectors").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_opens_the_file_anew(feature_retriever: Retriever, index: Index) -> None:
    assert len(index) == 10
    child = os.fork()
    if not child:
        try:
            index.update("3", {"child": True})
            os._exit(len(list(index)))
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    assert index.get("3").metadata == {"child": True}  # type: ignore[union-attr]  # it is there


# Kills

WRITE = """
import sys
import numpy as np
from camp_sdk import Retriever
from camp_sdk.index import adding, reencoding
adding.COMMIT_ITEMS, reencoding.READ_ITEMS = 7, 7
bundle, path, log, seed = sys.argv[1:]
rng, steps = np.random.default_rng(int(seed)), {}
def features(key):
    return np.random.default_rng([steps[key], int(key)]).standard_normal((5, 12), dtype=np.float32)
def begin(*words):
    print("begin", *words, file=done, flush=True)
done = open(log, "a")
with Retriever(bundle, "onnxruntime") as retriever, retriever.open_index(path, create=True) as index:
    print("ready", flush=True)
    for step in range(100000):
        keys = [str(key) for key in rng.choice(60, 8, replace=False)]
        if step % 4 == 2:
            begin("remove", step, *keys)
            index.remove(keys)
        elif step % 4 == 3:
            begin("reencode", step)
            index.reencode(retriever, features, "int8" if index.precision == "float16" else "float16")
        else:
            steps.update(dict.fromkeys(keys, step))
            begin("add", step, *keys)
            index.add(map(features, keys), keys, [{"step": step}] * 8)
        print("end", file=done, flush=True)
"""


def expected_after(log: Path) -> tuple[dict[str, int], set[str]]:
    """What a killed writer acknowledged: the step of each key, and the keys of the call that was killed."""
    held: dict[str, int] = {}
    calls = log.read_text().splitlines() if log.exists() else []
    for begun, ended in zip(calls[::2], [*calls[1::2], ""], strict=False):
        _, kind, step, *keys = begun.split()
        if not ended:
            return held, set(keys)
        if kind != "reencode":
            held = {key: own for key, own in held.items() if key not in keys}
            held |= dict.fromkeys(keys, int(step)) if kind == "add" else {}
    return held, set()


def features_of(step: int, key: str) -> Features:
    return np.random.default_rng([step, int(key)]).standard_normal((5, 12), dtype=np.float32)


def check_whole(retriever: Retriever, index: Index) -> None:
    """Check that an index is sound, and that it ranks as a gallery of what its metadata say it holds."""
    with index._database.reading() as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    held = {item.key: item.metadata["step"] for item in index}
    assert len(held) == len(index)
    if held:
        images = [features_of(step, key) for key, step in held.items()]
        gallery = retriever.encode_images(images, list(held), precision=index.precision)
        expected = {match.document: match.logit for match in retriever.rank(QUERY, gallery, 100)}
        assert {match.key: match.logit for match in retriever.rank(QUERY, index, 100)} == pytest.approx(
            expected, abs=1e-4
        )


def test_kills_lose_nothing_that_was_acknowledged(
    feature_retriever: Retriever, feature_bundle: Path, path: Path, tmp_path: Path
) -> None:
    log, random = tmp_path / "log", Random(1)
    for kill in range(KILLS):
        for old in tmp_path.glob("*"):
            old.unlink()
        command = [sys.executable, "-c", WRITE, str(feature_bundle), str(path), str(log), str(kill)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0.02, 0.6))
            writer.send_signal(signal.SIGKILL)
        held, unsure = expected_after(log)
        with feature_retriever.open_index(path) as index:
            found = {item.key: item.metadata["step"] for item in index}
            certain = {key: step for key, step in found.items() if key not in unsure}
            assert certain == {key: step for key, step in held.items() if key not in unsure}
            check_whole(feature_retriever, index)
            index.reencode(feature_retriever, lambda key: features_of(found[key], key), "float32")  # noqa: B023 - called here
            check_whole(feature_retriever, index)


# Another bundle


def test_another_bundle_is_refused(feature_retriever: Retriever, other_bundle: Path, index: Index, path: Path) -> None:
    with Retriever(other_bundle, "onnxruntime") as other:
        for call in (lambda: other.open_index(path), lambda: other.rank(QUERY, index)):
            with pytest.raises(BundleError, match=r"was made by another bundle \(.{12}, this one is .{12}\)"):
                call()


def test_reencode_moves_an_index_while_it_is_read_and_written(
    feature_retriever: Retriever, other_bundle: Path, index: Index, path: Path, features: Features
) -> None:
    before = feature_retriever.rank(QUERY, index, 10)
    sources = {str(n): features[n] for n in range(10)} | {"late": features[3] + 1}
    with Retriever(other_bundle, "onnxruntime") as other, feature_retriever.open_index(path) as reader:

        def check(done: int) -> None:
            if "late" not in reader:
                assert feature_retriever.rank(QUERY, reader, 10) == before
                assert reader.info().reencoding == 10
                reader.add([features[3] + 1], ["late"], [{"n": 99}])
                reader.remove(["4"])

        with pytest.raises(InputError, match="10 items, such as '0', were not added as paths: pass `sources`"):
            index.reencode(other)
        index.reencode(other, sources, on_progress=check)
        expected = other.encode_images(
            [features[n] for n in range(10) if n != 4] + [features[3] + 1], precision="float16"
        )
        found, wanted = other.rank(QUERY, index, 10), other.rank(QUERY, expected, 10)
        assert [match.corpus_id for match in found] == [match.corpus_id for match in wanted]
        assert [match.logit for match in found] == pytest.approx([match.logit for match in wanted], abs=1e-4)
        assert [match.key for match in found if match.metadata == {"n": 99}] == ["late"]
        with pytest.raises(BundleError, match="was made by another bundle"):
            feature_retriever.rank(QUERY, reader)
        with index._database.reading() as connection:
            assert connection.execute("SELECT count(*) FROM generations").fetchone() == (1,)
            assert connection.execute("SELECT count(*) FROM vectors").fetchone() == (10,)
        index.add([features[0]], ["more"])
        assert index.info().reencoding is None


def test_a_reencoding_that_was_stopped_goes_on(
    feature_retriever: Retriever, other_bundle: Path, path: Path, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reencoding, "READ_ITEMS", 3)
    with feature_retriever.open_index(path, create=True) as index, Retriever(other_bundle, "onnxruntime") as other:
        index.add(features, map(str, range(10)))

        def source(key: str) -> Features:
            if len(asked) == 7:
                raise RuntimeError("stopped")
            asked.append(key)
            return features[int(key)]

        asked: list[str] = []
        with pytest.raises(RuntimeError, match="stopped"):
            index.reencode(other, source)
        assert len(feature_retriever.rank(QUERY, index, 10)) == 10
        first, asked = asked, []
        index.reencode(other, source)
        assert len(asked) == 4 or len(set(first + asked)) == 10
        assert len(other.rank(QUERY, index, 10)) == 10
        index.reencode(other, source)  # nothing to do


def test_reencode_reads_files_and_texts(
    picture_retriever: Retriever, picture_bundle: Path, feature_retriever: Retriever, other_bundle: Path, tmp_path: Path
) -> None:
    from PIL import Image

    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    with picture_retriever.open_index(tmp_path / "photos.index", create=True) as index:
        index.add([tmp_path / f"{number}.png" for number in range(4)])
        (tmp_path / "2.png").unlink()
        with pytest.raises(InputError, match=r"2\.png"):
            index.reencode(picture_retriever, precision="int8")
        index.reencode(picture_retriever, precision="int8", skip_broken=True)
        assert (index.precision, list(index.keys())) == ("int8", ["0.png", "1.png", "3.png"])
    with (
        feature_retriever.open_index(tmp_path / "texts.index", create=True, kind="text") as texts,
        Retriever(other_bundle, "onnxruntime") as other,
    ):
        texts.add(CAPTIONS)
        texts.reencode(other)
        image = np.ones((5, FEATURE_WIDTH), np.float32)
        found = [match.key for match in other.rank(image, texts)]
        assert found == [match.document for match in other.rank(image, other.encode_texts(CAPTIONS))]
        with pytest.raises(InputError, match="an index of texts stores float32"):
            texts.reencode(feature_retriever, precision="int8")


def test_errors_of_sqlite_are_errors_of_this_package(path: Path) -> None:
    import sqlite3

    found: list[tuple[str, Callable[[Exception], bool]]] = [
        ("database or disk is full", lambda e: isinstance(e, OSError)),
        ("attempt to write a readonly database", lambda e: isinstance(e, PermissionError)),
        ("unable to open database file", lambda e: isinstance(e, OSError)),
        ("disk I/O error", lambda e: isinstance(e, OSError)),
        ("database disk image is malformed", lambda e: isinstance(e, BundleError)),
    ]
    for text, holds in found:
        assert holds(database._translated(sqlite3.OperationalError(text), path))
