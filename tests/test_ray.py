"""Parts encoded on a cluster of Ray, which runs on this machine: equal to those of one process, whatever is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from camp_sdk import InputError, Retriever
from camp_sdk.cluster.building import Built, Cluster, build_parts, import_ray
from camp_sdk.cluster.encoding import REPORT_ITEMS, Encoder
from camp_sdk.cluster.sources import find_sources

pytest.importorskip("ray", reason="Ray, of the extra ray, is not installed")
pytestmark = [pytest.mark.slow]
COUNT = 2 * REPORT_ITEMS + 150
HERE = Cluster("local")


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    """Ray on this machine, for all tests here: it takes seconds to begin."""
    module = import_ray()
    module.init("local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield module
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
            killed.extend(encoding_processes())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    built = build_parts(tmp_path / "parts", find_sources(str(photos)), encoder, 1, HERE, kill)
    assert (len(killed), built.restarts) == (1, 1)
    assert built.unchanged >= REPORT_ITEMS  # what was committed before
    alone = build_parts(tmp_path / "alone", find_sources(str(photos)), encoder, 1)
    made, expected = contents(built, picture_retriever), contents(alone, picture_retriever)
    assert made == expected
    assert list(made[0]) == list(expected[0])


def encoding_processes() -> list[int]:
    """The processes of this machine's Ray that encode a part."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and _command(folder).startswith(b"ray::encode_part"):
            found.append(int(folder.name))
    return found


def _command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def test_an_error_of_a_part_is_that_of_the_call(
    ray: ModuleType, photos: Path, encoder: Encoder, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="`cpus` is 1000, and the cluster has 2"):
        build_parts(tmp_path / "parts", [], encoder, 1, Cluster("local", cpus=1000))
    sources = find_sources(str(photos))[:4]
    build_parts(tmp_path / "parts", sources, encoder, 1)
    (tmp_path / "parts/part-00000.index").write_bytes(b"no index")
    with pytest.raises(Exception, match=r"part-00000\.index") as raised:
        build_parts(tmp_path / "parts", sources, encoder, 1)
    with pytest.raises(raised.type, match=r"part-00000\.index"):
        build_parts(tmp_path / "parts", sources, encoder, 1, HERE)
