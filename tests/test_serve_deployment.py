"""What the docs, the dashboard and the Dockerfile say of `camp serve` is there."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from camp_sdk import Retriever
from camp_sdk.client import Client
from camp_sdk.server.settings import Settings
from tests.helpers.serving import served

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docs/serving-grafana.json").read_text(encoding="utf-8"))
METRIC = re.compile(r"\b(?:camp|process)_[a-z_]+\b")
OPTIONS = {field.name for field in fields(Settings)} | {"config"}


def blocks(kind: str) -> list[str]:
    return [text for name, text in BLOCKS if name == kind]


@pytest.fixture(scope="module")
def metrics(feature_bundle: Path, feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names in `/metrics` after a search."""
    folder = tmp_path_factory.mktemp("metrics") / "gallery"
    features = np.random.default_rng(0).standard_normal((3, 5, 12), dtype=np.float32)
    feature_retriever.encode_images(features).save(folder)
    with served(bundle=feature_bundle, gallery=folder, backend="onnxruntime") as server:
        server.found("/v1/search", {"query": "a red circle"})
        text = server("GET", "/metrics").text
    # The names of those that nothing was counted of are in comments alone.
    return set(re.findall(r"^(?:# TYPE )?([a-z_]+)", text, flags=re.MULTILINE))


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["name"] == "job")


def test_every_metric_of_the_dashboard_is_there(metrics: set[str]) -> None:
    named = [METRIC.findall(expression) for expression in expressions()]
    assert all(named)
    assert {name for names in named for name in names} <= metrics


def test_the_dashboard_shows_every_metric_of_the_server(metrics: set[str]) -> None:
    shown = " ".join(expressions())
    own = {re.sub(r"_(total|info|created|bucket|sum|count)$", "", name) for name in metrics if name.startswith("camp_")}
    assert {name for name in own if name not in shown} == set()


def test_every_metric_of_the_page_is_there(metrics: set[str]) -> None:
    named = {name for name in METRIC.findall(PAGE) if name.startswith("camp_") and name != "camp_sdk"}
    assert len(named) >= 4
    assert named <= metrics


def test_panels_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


@pytest.mark.parametrize("text", [PAGE, DOCKERFILE], ids=["page", "Dockerfile"])
def test_variables_of_the_environment_are_settings(text: str) -> None:
    names = set(re.findall(r"\bCAMP_([A-Z_]+)", text))
    assert len(names) >= 3
    assert {name.lower() for name in names} <= OPTIONS


def test_the_unit_starts_a_server_with_options_that_exist() -> None:
    (unit,) = blocks("ini")
    (line,) = re.findall(r"^ExecStart=(.*)", unit, flags=re.MULTILINE)
    assert line.split()[1] == "serve"
    assert {option.replace("-", "_") for option in re.findall(r"--([a-z-]+)", line)} <= OPTIONS


def test_the_time_to_end_is_enough() -> None:
    deployment, _ = (yaml.safe_load(text) for text in blocks("yaml"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    needed = float(environment["CAMP_DRAIN"]) + float(environment["CAMP_TIME_LIMIT"]) + 5
    assert pod["terminationGracePeriodSeconds"] > needed
    assert environment["CAMP_THREADS"] == container["resources"]["limits"]["cpu"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    for text in (blocks("ini")[0], PAGE):
        (seconds,) = set(re.findall(r"(?:TimeoutStopSec=|--stop-timeout )(\d+)", text))
        assert int(seconds) > Settings(Path(), index=Path()).time_limit + 5


def test_probes_ask_what_the_server_answers() -> None:
    (container,) = yaml.safe_load(blocks("yaml")[0])["spec"]["template"]["spec"]["containers"]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}


def test_python_of_the_page_uses_real_calls() -> None:
    (block,) = (text for text in blocks("python") if "camp_sdk.client" in text)
    compile(block, "serving.md", "exec")
    named = set(re.findall(r"\bclient\.(\w+)\(", PAGE))
    assert {"rank", "explain", "score", "add", "update", "remove"} <= named
    assert all(hasattr(Client, name) for name in named)


def stages() -> list[list[str]]:
    return [stage.splitlines() for stage in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]]


def test_images_that_run_have_a_user_and_a_check_of_health() -> None:
    running = [stage for stage in stages() if any(line.startswith("CMD ") for line in stage)]
    assert [re.findall(r" AS (\w+)", stage[0]) for stage in running] == [["nvidia"], ["cpu"]]
    assert running[-1] == stages()[-1]  # what is built without a target
    for stage in running:
        instructions = {line.split()[0]: line for line in stage if line[:1].isupper()}
        assert instructions["USER"] == "USER 10001"
        check = json.loads(instructions["HEALTHCHECK"].partition(" CMD ")[2])
        assert "/health" in check[-1]
        compile(check[-1], "Dockerfile", "exec")
        assert json.loads(instructions["CMD"].removeprefix("CMD ")) == ["camp", "serve"]


def test_what_an_image_copies_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--)", line)]
    names: set[Any] = {name for names in copied for name in names}
    assert names == kept
    assert all((ROOT / name).exists() for name in names)
    assert not any(fnmatch.fnmatch("camp_sdk", line) for line in lines if line not in ("*", "!camp_sdk"))
