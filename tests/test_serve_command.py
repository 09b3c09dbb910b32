"""The command `camp serve`: its settings, its signals, its logs, and what it says when it cannot begin."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from camp_sdk import Retriever
from camp_sdk.server import run as run_module
from camp_sdk.server.app import create_app
from camp_sdk.server.guard import REQUEST_ID
from camp_sdk.server.logs import JsonFormatter, LineFormatter
from camp_sdk.server.run import Server, listener
from camp_sdk.server.settings import Settings
from tests.helpers.command import Camp
from tests.helpers.processes import ROOT, run_blocked
from tests.helpers.serving import WRITES, key_files, served
from tests.helpers.tiny import FEATURE_WIDTH

QUERY = {"query": "a small red circle"}
WAIT_S = 60


@pytest.fixture
def index(feature_retriever: Retriever, tmp_path: Path) -> Path:
    features = np.random.default_rng(0).standard_normal((20, 5, FEATURE_WIDTH), dtype=np.float32)
    with feature_retriever.open_index(tmp_path / "photos.index", create=True) as made:
        made.add(features, keys=map(str, range(20)))
    return tmp_path / "photos.index"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that `camp serve` would have served with."""
    found: list[Settings] = []
    monkeypatch.setattr(run_module, "serve", found.append)
    for name in [name for name in os.environ if name.startswith("CAMP_")]:
        monkeypatch.delenv(name)
    return found


# Settings


def test_the_defaults_are_those_of_the_settings(camp: Camp, taken: list[Settings]) -> None:
    assert camp("serve", "bundle", "--index", "photos.index").code == 0
    assert taken == [Settings(Path("bundle"), Path("photos.index"))]


def test_an_option_comes_before_the_environment_before_the_file_before_the_default(
    camp: Camp, taken: list[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.toml"
    lines = ["bundle = 'file'", "index = 'file'", "port = 1", "time-limit = 1.5", "max_body = '1M'", "drain = 3"]
    file.write_text("\n".join([*lines, "allow-origin = ['http://a', 'http://b']", "without-keys = true"]))
    monkeypatch.setenv("CAMP_PORT", "2")
    monkeypatch.setenv("CAMP_TIME_LIMIT", "2.5")
    monkeypatch.setenv("CAMP_CONFIG", str(file))
    assert camp("serve", "--port", "3").code == 0
    (found,) = taken
    assert (found.bundle, found.index, found.port, found.time_limit) == (Path("file"), Path("file"), 3, 2.5)
    assert (found.max_body, found.drain, found.allow_origin, found.host) == (
        1 << 20,
        3.0,
        ("http://a", "http://b"),
        "127.0.0.1",
    )
    assert found.without_keys
    monkeypatch.setenv("CAMP_BUNDLE", "environment")
    monkeypatch.setenv("CAMP_ALLOW_ORIGIN", "http://c")
    assert camp("serve", "--time-limit", "9").code == 0
    assert (taken[1].bundle, taken[1].allow_origin, taken[1].time_limit) == (Path("environment"), ("http://c",), 9.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("port = ", "is not TOML"),
        ("prot = 1", "sets 'prot'"),
        ("config = 'other.toml'", "sets 'config'"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "is not TOML"),
    ],
)
def test_a_file_of_settings_that_cannot_be_used(
    camp: Camp, taken: list[Settings], tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "serve.toml").write_text(content, encoding="latin-1")
    done = camp("serve", "bundle", "--index", "i", "--config", tmp_path / "serve.toml")
    assert (done.code, taken) == (1, [])
    assert re.fullmatch(rf"error: .*{message}.*\n", done.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --index, --gallery or --parts"),
        (("--index", "a", "--gallery", "b"), "give either --index, --gallery or --parts"),
        (("--index", "a", "--host", "0.0.0.0"), "--host is '0.0.0.0', which others may reach"),
        (("--index", "a", "--log-format", "xml"), "--log-format is 'xml'"),
        (("--index", "a", "--root-path", "x/"), "--root-path is 'x/'"),
        (("--index", "a", "--time-limit", "inf"), "--time-limit is inf"),
        (("--index", "a", "--drain", "inf"), "--drain is inf"),
        (("--index", "a", "--allow-origin", "*"), "--allow-origin is '*'"),
        (("--index", "a", "--allow-origin", "https://shop.example/"), "--allow-origin is 'https://shop.example/'"),
    ],
)
def test_settings_that_do_not_fit_together(
    camp: Camp, taken: list[Settings], options: tuple[str, ...], message: str
) -> None:
    done = camp("serve", "bundle", *options)
    assert (done.code, taken) == (1, [])
    assert message in done.err


# The package


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "python_multipart"])
def test_without_its_extra_the_command_says_so_in_a_line(package: str) -> None:
    missing = f"sys.modules[{package!r}] = sys.modules['multipart'] = None\n"
    code = f"{missing}sys.argv = ['camp', 'serve', 'bundle', '--index', 'i']\n"
    done = run_blocked(code + "from camp_sdk.commands.app import main\nmain()")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: {package} is not installed; install it with: .*\[server\].*\n", done.stderr)


def test_other_commands_do_not_load_the_packages_of_the_server() -> None:
    names = "fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart"
    code = f"import camp_sdk.commands.app\nprint(*(name for name in {names} if name in sys.modules))"
    assert run_blocked(code).stdout == "\n"


# Running


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`camp serve` in a process, and its address."""
    code = "from camp_sdk.commands.app import main; main()"
    command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0", "--backend", "onnxruntime"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        try:
            for line in started.stderr:
                if found := re.search(r"listening at (http://\S+?)\"?,?$", line.strip()):
                    yield started, found[1]
                    return
            raise AssertionError("it did not listen")
        finally:
            started.kill()


def wait_until_ready(address: str) -> None:
    pause = threading.Event()
    for _ in range(600):
        if httpx.get(f"{address}/ready").status_code == 200:
            return
        pause.wait(0.1)
    raise AssertionError("it was not ready")


def test_a_server_answers_reloads_and_ends_with_status_0(feature_bundle: Path, index: Path) -> None:
    with process(feature_bundle, "--index", index) as (started, address):
        wait_until_ready(address)
        assert len(httpx.post(f"{address}/v1/search", json=QUERY).json()["matches"]) == 5
        started.send_signal(signal.SIGHUP)
        assert started.stderr is not None
        assert any("reloaded: camp-" in line for line in started.stderr)
        assert len(httpx.post(f"{address}/v1/search", json=QUERY).json()["matches"]) == 5
        started.send_signal(signal.SIGTERM)
        rest = started.stderr.read()
        assert started.wait(WAIT_S) == 0
        assert "Traceback" not in rest


def test_a_server_that_cannot_load_says_why_in_a_line(feature_bundle: Path, tmp_path: Path) -> None:
    code = "from camp_sdk.commands.app import main; main()"
    arguments = ["serve", str(feature_bundle), "--index", str(tmp_path / "none.index"), "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=WAIT_S
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.fullmatch(r"error: .*none\.index not found.*", done.stderr.splitlines()[-1])


def test_an_address_in_use_is_named(feature_bundle: Path, index: Path) -> None:
    with listener(Settings(feature_bundle, index, port=0)) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            listener(Settings(feature_bundle, index, port=port))


def test_what_was_accepted_is_answered_before_a_server_ends(feature_bundle: Path, index: Path, tmp_path: Path) -> None:
    settings = Settings(feature_bundle, index, port=0, root_path="/app", backend="onnxruntime", **key_files(tmp_path))
    app = create_app(settings)
    server, socket = Server(app, settings), listener(settings)
    serving = app.state.serving
    thread = threading.Thread(target=server.run, args=[[socket]])
    thread.start()
    address = f"http://127.0.0.1:{socket.getsockname()[1]}"
    wait_for(lambda: server.started)
    wait_until_ready(address)
    answers: list[httpx.Response] = []
    with serving.dispatcher.lanes.turns:
        asking = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/v1/search", json=QUERY)))
        asking.start()
        wait_for(lambda: serving.dispatcher.admission.pairs == 20)
        server.drain(0.3)
        refused = httpx.get(f"{address}/ready")
        assert (refused.status_code, refused.headers["connection"]) == (503, "close")
        assert httpx.delete(f"{address}/v1/items/3", headers=WRITES).status_code == 204
        wait_for(lambda: server.should_exit)
        assert thread.is_alive()
    asking.join(WAIT_S)
    thread.join(WAIT_S)
    assert [len(one.json()["matches"]) for one in answers] == [5]
    assert server.failure is None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/ready")


def wait_for(happened: Any) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if happened():
            return
        pause.wait(0.01)
    raise AssertionError("it never happened")


# Logs


@pytest.fixture
def record() -> logging.LogRecord:
    made = logging.LogRecord("camp_sdk.server", logging.INFO, "", 0, "%s\n%s", ("a", "b"), None)
    made.fields = {"status": 200}
    made.created = 0.0
    return made


def test_lines_of_the_log_name_the_request(record: logging.LogRecord) -> None:
    token = REQUEST_ID.set("request-7")
    try:
        assert LineFormatter().format(record) == "1970-01-01T00:00:00.000+00:00 info request-7 a\\nb"
        found = json.loads(JsonFormatter().format(record))
    finally:
        REQUEST_ID.reset(token)
    assert (found["request_id"], found["message"], found["status"]) == ("request-7", "a\nb", 200)


def test_logs_show_neither_keys_nor_bodies(feature_bundle: Path, index: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with served(bundle=feature_bundle, index=index, backend="onnxruntime") as running:
        running.post("/v1/search", {"query": "a secret circle"}, headers={"Authorization": "Bearer very-secret"})
        running("GET", "/v1/items/secret%20key")
        running("GET", "/secret/path")
    mine = [record.getMessage() for record in caplog.records if record.name.startswith("camp_sdk")]
    assert [line.rsplit(" ", 2)[0] for line in mine] == [
        "POST /v1/search 200",
        "GET /v1/items/{key:path} 404",
        "GET unknown 404",
    ]
