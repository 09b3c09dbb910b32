"""Parts encoded on a cluster of Ray, which runs on this machine: equal to those of one process, whatever is lost."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from camp_sdk import InputError, Ranking, Retriever
from camp_sdk.cluster.building import Built, Cluster, build_parts, import_ray
from camp_sdk.cluster.encoding import REPORT_ITEMS, Encoder
from camp_sdk.cluster.ray_shards import RayShards
from camp_sdk.cluster.serving import Layout, deploy, settings_for
from camp_sdk.cluster.sources import find_sources
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.server.settings import Settings
from tests.helpers.tiny import save_tiny_checkpoint

pytest.importorskip("ray", reason="Ray, of the extra ray, is not installed")
# Of Ray Serve's own models, when it is imported.
OLD_FIELDS = "ignore:Using extra keyword arguments on `Field` is deprecated:DeprecationWarning"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings(OLD_FIELDS)]
COUNT = 2 * REPORT_ITEMS + 150
HERE = Cluster("local")


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    """Ray on this machine, for all tests here: it takes seconds to begin."""
    module = import_ray()
    module.init("local", num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield module
    from ray import serve

    serve.shutdown()
    module.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def encoder(picture_bundle: Path) -> Encoder:
    return Encoder(picture_bundle, "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def here(photos: Path, picture_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """What this process makes of the pictures."""
    encoder = Encoder(picture_bundle, "onnxruntime", threads=1)
    return build_parts(tmp_path_factory.mktemp("here") / "parts", find_sources(str(photos)), encoder, 2)


def contents(built: Built, retriever: Retriever) -> list[dict[str, bytes]]:
    """The encoded tensors of each item by its key, in the order of the index, for each part."""
    found = []
    for path in built.parts.paths:
        with retriever.open_index(path) as index:
            keys = list(index.keys())
            tensors = list(index.gallery(keys).encoded.tensors.values())
        found.append({key: b"".join(t[k].tobytes() for t in tensors) for k, key in enumerate(keys)})
    return found


def test_a_cluster_makes_the_same_parts(
    ray: ModuleType, photos: Path, encoder: Encoder, here: Built, picture_retriever: Retriever, tmp_path: Path
) -> None:
    done: list[int] = []
    built = build_parts(tmp_path / "parts", find_sources(str(photos)), encoder, 2, HERE, done.append)
    assert (built.encoded, built.unchanged, built.restarts, sum(done)) == (COUNT, 0, 0, COUNT)
    made, expected = contents(built, picture_retriever), contents(here, picture_retriever)
    assert made == expected
    assert [list(part) for part in made] == [list(part) for part in expected]
    again = build_parts(tmp_path / "parts", find_sources(str(photos)), encoder, cluster=HERE)
    assert (again.encoded, again.unchanged) == (0, COUNT)


def test_a_process_that_is_killed_is_replaced_by_one_that_goes_on(
    ray: ModuleType, photos: Path, encoder: Encoder, picture_retriever: Retriever, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(done: int) -> None:
        if not killed:
            killed.extend(processes("encode_part"))
            for process in killed:
                os.kill(process, signal.SIGKILL)

    built = build_parts(tmp_path / "parts", find_sources(str(photos)), encoder, 1, HERE, kill)
    assert (len(killed), built.restarts) == (1, 1)
    assert built.unchanged >= REPORT_ITEMS  # what was committed before
    alone = build_parts(tmp_path / "alone", find_sources(str(photos)), encoder, 1)
    made, expected = contents(built, picture_retriever), contents(alone, picture_retriever)
    assert made == expected
    assert list(made[0]) == list(expected[0])


def processes(title: str) -> list[int]:
    """The processes of this machine's Ray with a title."""
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [int(folder.name) for folder in folders if _command(folder).startswith(f"ray::{title}".encode())]


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def test_an_error_of_a_part_is_that_of_the_call(
    ray: ModuleType, photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="`cpus` is 1000, and the cluster has 4"):
        build_parts(tmp_path / "parts", [], encoder, 1, Cluster("local", cpus=1000))
    sources = find_sources(str(photos))[:4]
    build_parts(tmp_path / "parts", sources, encoder, 1)
    (tmp_path / "parts/part-00000.index").write_bytes(b"no index")
    with pytest.raises(Exception, match=r"part-00000\.index") as raised:
        build_parts(tmp_path / "parts", sources, encoder, 1)
    with pytest.raises(raised.type, match=r"part-00000\.index"):
        build_parts(tmp_path / "parts", sources, encoder, 1, HERE)


# Serving


@dataclass(frozen=True)
class Served:
    """Parts that a cluster serves, and what is right."""

    settings: Settings
    rankings: dict[str, Ranking]


QUERIES = ["a small red circle", "two dogs run on a beach", "star"]
SEARCH = {"top_k": 6, "offset": 1, "shortlist": 12}
# Pairs are scored in other blocks than those of one index, which moves the last bits of a float32 sum.
TOLERANCE = 1e-5


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def encoded(bundle: Path, photos: Path, folder: Path, port: int) -> Served:
    """Forty pictures in three parts, and their rankings in one index."""
    sources = find_sources(str(photos))[:40]
    encoder = Encoder(bundle, "onnxruntime", threads=1)
    parts = build_parts(folder / "parts", sources, encoder, 3).parts
    with Retriever(bundle, "onnxruntime") as retriever, retriever.open_index(folder / "whole", create=True) as index:
        index.add([Path(source.location) for source in sources], [source.key for source in sources])
        rankings = {text: retriever.rank(text, index, 6, 12, offset=1) for text in QUERIES}
    settings = Settings(bundle, parts=parts.folder, port=port, shards=2, backend="onnxruntime", threads=1)
    return Served(settings_for(replace(settings, shard_limit=4.0)), rankings)


@pytest.fixture(scope="module")
def served(ray: ModuleType, photos: Path, picture_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    found = encoded(picture_bundle, photos, tmp_path_factory.mktemp("served"), free_port())
    deploy(found.settings, Layout(), HERE)
    return found


def search(settings: Settings, text: str, **options: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{settings.port}/v1/search"
    done = httpx.post(url, json=SEARCH | {"query": text} | options, timeout=60, trust_env=False)
    assert done.status_code == 200, done.text
    found: dict[str, Any] = done.json()
    return found


def is_right(found: dict[str, Any], ranking: Ranking) -> bool:
    keys = [match["key"] for match in found["matches"]] == [match.key for match in ranking]
    scores = zip((match["score"] for match in found["matches"]), (match.score for match in ranking), strict=True)
    return keys and found["partial"] == [] and all(abs(one - other) < TOLERANCE for one, other in scores)


def test_two_shards_with_three_parts_answer_as_one_index_does(served: Served) -> None:
    for text, ranking in served.rankings.items():
        found = search(served.settings, text)
        assert is_right(found, ranking), found
        assert found["shortlist"] == ranking.shortlist == 12
    key = served.rankings[QUERIES[0]][0].key
    about = httpx.get(f"http://127.0.0.1:{served.settings.port}/v1/models", trust_env=False).json()["data"][0]
    assert (about["corpus"]["items"], about["corpus"]["store"]) == (40, "parts")
    pairs = {"pairs": [{"text": QUERIES[0], "key": key}]}
    scored = httpx.post(f"http://127.0.0.1:{served.settings.port}/v1/score", json=pairs, timeout=60, trust_env=False)
    assert scored.json()["scores"][0] == pytest.approx(served.rankings[QUERIES[0]][0].score, abs=TOLERANCE)


def test_an_answer_says_which_parts_are_missing_until_a_killed_shard_is_back(served: Served) -> None:
    (process,) = processes(f"ServeReplica:{served.settings.shards_app}:shard-0")
    shards = RayShards(served.settings.shards_app or "", 2, limit_s=1.0)  # less than a process takes to begin
    os.kill(process, signal.SIGKILL)
    assert 0 not in shards.call("size", dict.fromkeys(shards.numbers, ()))
    for _ in range(60):
        found = search(served.settings, QUERIES[0])
        if not found["partial"]:
            break
        assert found["partial"] == ["part-00000", "part-00002"]
        assert found["matches"]
    assert is_right(found, served.rankings[QUERIES[0]])


def test_a_new_bundle_takes_over_without_a_failed_request(
    served: Served, photos: Path, tmp_path: Path, one_thread: None
) -> None:
    bundle = export_bundle(
        save_tiny_checkpoint(tmp_path / "new.ckpt", "scalar", True, seed=5), tmp_path / "bundle"
    ).folder
    fresh = encoded(bundle, photos, tmp_path, served.settings.port)
    assert fresh.rankings != served.rankings
    with ThreadPoolExecutor(1) as thread:
        deploying = thread.submit(deploy, fresh.settings, Layout(), HERE)
        while not deploying.done():
            found = search(served.settings, QUERIES[0])
            assert is_right(found, served.rankings[QUERIES[0]]) or is_right(found, fresh.rankings[QUERIES[0]]), found
        deploying.result()
    assert is_right(search(served.settings, QUERIES[1]), fresh.rankings[QUERIES[1]])


def test_too_few_cores_are_refused(served: Served) -> None:
    with pytest.raises(InputError, match="2 shards with 9 replicas take 18 CPUs, and the cluster has 4"):
        deploy(served.settings, Layout(replicas=9), HERE)
