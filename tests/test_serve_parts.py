"""`camp serve --parts`: the answers of one index, and the configuration for a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from camp_sdk import InputError, Retriever
from camp_sdk.client.answers import ranking
from camp_sdk.client.wire import Reply
from camp_sdk.cluster import serving
from camp_sdk.cluster.building import build_parts
from camp_sdk.cluster.encoding import Encoder
from camp_sdk.cluster.ray_shards import WAITING
from camp_sdk.cluster.sources import find_sources
from camp_sdk.server.admission import Admission
from camp_sdk.server.settings import Settings
from tests.helpers.command import Camp
from tests.helpers.serving import served

QUERY = "a small red circle"
COUNT = 9
# Pairs are scored in other blocks than those of one index, which moves the last bits of a float32 sum.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures beside a folder of parts."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(5)
    for number in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def parts(photos: Path, picture_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoder = Encoder(picture_bundle, "onnxruntime", threads=1)
    return build_parts(
        tmp_path_factory.mktemp("parts") / "photos.parts", find_sources(str(photos)), encoder, 3
    ).parts.folder


def test_parts_are_served_as_one_index(
    picture_bundle: Path, picture_retriever: Retriever, photos: Path, parts: Path, tmp_path: Path
) -> None:
    files = sorted(photos.iterdir())
    with picture_retriever.open_index(tmp_path / "whole.index", create=True) as index:
        index.add(files, [file.name for file in files])
        expected = picture_retriever.rank(QUERY, index, 4, 6, offset=1)
        alike = picture_retriever.rank(files[0], index, 3, by="image")
    options = {"bundle": picture_bundle, "backend": "onnxruntime"}
    with served(parts=parts, shards=2, picture_root=(photos,), **options) as running:
        asked = {"query": QUERY, "top_k": 4, "shortlist": 6, "offset": 1}
        found = running.post("/v1/search", asked).json()
        assert [match["key"] for match in found["matches"]] == [match.key for match in expected]
        scores = [match["score"] for match in found["matches"]]
        np.testing.assert_allclose(scores, [match.score for match in expected], rtol=0, atol=TOLERANCE)
        assert (found["shortlist"], found["partial"]) == (6, [])
        assert "camp_pairs_total 6.0" in running("GET", "/metrics").text
        key = expected[0].key
        scored = running.post("/v1/score", {"pairs": [{"text": QUERY, "key": key}] * 2}).json()
        np.testing.assert_allclose(scored["scores"], [expected[0].score] * 2, rtol=0, atol=TOLERANCE)
        assert running.post("/v1/explain", {"query": QUERY, "key": key}).status_code == 200
        assert running("GET", f"/v1/items/{key}/thumbnail").status_code == 200
        assert running("GET", "/v1/items/none/thumbnail").status_code == 404
        assert running.post("/v1/score", {"pairs": [{"text": QUERY, "key": "none"}]}).status_code == 404
        listed = running("GET", "/v1/items")
        assert (listed.status_code, "an index in parts" in listed.json()["detail"]) == (409, True)
        similar = running("POST", "/v1/search", data={"top_k": "3"}, files={"picture": files[0].read_bytes()}).json()
        assert [match["key"] for match in similar["matches"]] == [match.key for match in alike]


def test_a_client_receives_which_parts_are_missing() -> None:
    body = {"matches": [], "unknown_words": [], "shortlist": None, "partial": ["part-00001"]}
    assert ranking(Reply(200, "application/json", "", "", json.dumps(body).encode())).missing == ("part-00001",)


@pytest.mark.parametrize("names", [(), ("index", "parts"), ("gallery", "parts")])
def test_one_thing_is_served(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`index`, `gallery` or `parts`"):
        Settings(tmp_path, **dict.fromkeys(names, tmp_path))


def test_the_configuration_for_a_cluster_is_one_that_ray_takes(camp: Camp, picture_bundle: Path, parts: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray, of the extra ray, is not installed")
    from ray.serve.schema import ServeDeploySchema

    options = ("--parts", parts, "--shards", 2, "--replicas", 3, "--time-limit", 5, "--print-config")
    printed = camp("serve", picture_bundle, *options)
    found = ServeDeploySchema.model_validate(json.loads(printed.out))
    names = [application.name for application in found.applications]
    assert names[0].startswith("camp-shards-")
    assert names[1] == "camp"
    for application in found.applications:
        assert application.args["parts"] == str(parts)
        assert (application.args["shards"], application.args["replicas"], application.args["time_limit"]) == (2, 3, 5)


def test_more_processes_begin_while_queries_wait(camp: Camp, picture_bundle: Path, parts: Path) -> None:
    pytest.importorskip("ray.serve", reason="Ray, of the extra ray, is not installed")
    options = ("--parts", parts, "--shards", 2, "--max-replicas", 4, "--print-config")
    arguments = json.loads(camp("serve", picture_bundle, *options).out)["applications"][1]["args"]
    front = serving.front_application(arguments)._bound_deployment
    assert (
        front._deployment_config.max_ongoing_requests > 64
    )  # or requests would wait where they are not scored together
    scaling = front._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    waiting = {"one": 0.9, "other": 0.4}
    assert scaling.policy.get_policy()(SimpleNamespace(aggregated_metrics={WAITING: waiting}))[0] == 3
    assert scaling.policy.get_policy()(SimpleNamespace(aggregated_metrics=None))[0] == 1
    refused = camp("serve", picture_bundle, *options, "--replicas", 5)
    assert (refused.code, "expected at least 5" in refused.err) == (1, True)


def test_what_waits_is_reported_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(None, lambda reason: None)
    monkeypatch.setattr(serving.Front, "admission", admission)
    admission.enter(300)
    assert serving.Front().record_autoscaling_stats() == {WAITING: 0.0}  # how fast it is, is not known yet
    admission.measured(1000, 2.0)
    assert serving.Front().record_autoscaling_stats() == {WAITING: 0.6}


def test_a_cluster_serves_parts_alone(camp: Camp, picture_bundle: Path, tmp_path: Path) -> None:
    done = camp("serve", picture_bundle, "--index", tmp_path / "photos.index", "--print-config")
    assert (done.code, "camp index build" in done.err) == (1, True)
