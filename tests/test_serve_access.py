"""`camp serve`: who may ask for what, from where, and what is never fetched or shown."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from camp_sdk import Retriever
from camp_sdk.runtime.errors import InputError
from camp_sdk.server import fetching
from camp_sdk.server.fetching import Fetcher, Spent, is_public
from camp_sdk.server.page import Page
from camp_sdk.server.problems import Problem, problem_of
from camp_sdk.server.service import Services
from camp_sdk.server.settings import Settings
from camp_sdk.server.turns import Turns
from tests.helpers.serving import KEY, WRITE_KEY, WRITES, Served, fill, key_files, problem, served

READS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def filled(feature_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an index. Read only."""
    return fill(feature_retriever, tmp_path_factory.mktemp("limits") / "photos.index")


@pytest.fixture
def settings(feature_bundle: Path, filled: Path) -> dict[str, Any]:
    return {"bundle": feature_bundle, "index": filled, "backend": "onnxruntime"}


# Keys and hosts


@pytest.fixture(scope="module")
def keyed(feature_bundle: Path, filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    files = key_files(tmp_path_factory.mktemp("keys"), reading=True)
    with served(bundle=feature_bundle, index=filled, backend="onnxruntime", host="0.0.0.0", **files) as running:
        yield running


@pytest.mark.parametrize(
    ("headers", "reads", "writes"),
    [
        ({}, 401, 401),
        ({"Authorization": f"Basic {KEY}"}, 401, 401),
        ({"Authorization": KEY}, 401, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401, 401),
        ({"Authorization": "Bearer "}, 401, 401),
        ({"Authorization": f"Bearer {KEY} {WRITE_KEY}"}, 401, 401),
        ({"Authorization": "Bearer \xe9"}, 401, 401),
        (READS, 200, 403),
        ({"authorization": f"bearer  {KEY} "}, 200, 403),
        (WRITES, 200, 404),
    ],
    ids=str,
)
def test_keys(keyed: Served, headers: dict[str, str], reads: int, writes: int) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/items/1"), ("GET", "/metrics")):
        assert keyed(method, path, headers=encoded).status_code == reads
    for method in ("DELETE", "PUT", "PATCH"):
        done = keyed(method, "/v1/items/none", headers=encoded, json={"metadata": {}})
        assert done.status_code == (writes if method != "PUT" or writes != 404 else 422)
    for path in ("/", "/health", "/ready", "/openapi.json"):
        assert keyed("GET", path).status_code == 200


def test_without_keys_for_writing_nobody_writes(settings: dict[str, Any]) -> None:
    with served(**settings) as running:
        for method, path in (("DELETE", "/v1/items/1"), ("POST", "/v1/items"), ("POST", "/v1/reload")):
            assert problem(running(method, path, headers=WRITES))["status"] == 403
        assert running("GET", "/v1/items/1").status_code == 200


@pytest.mark.parametrize("content", ["", "# nothing\n", "too short\n", "a key with spaces in it\n", "ключ" * 10])
def test_a_file_of_keys_that_cannot_be_used(settings: dict[str, Any], tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.txt").write_text(content)
    with pytest.raises(ValueError, match=r"keys\.txt") as refused:
        Served(Settings(**settings, keys=tmp_path / "keys.txt"))
    assert not content.strip() or content.strip() not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_are_not_served_without_keys(settings: dict[str, Any], host: str) -> None:
    with pytest.raises(ValueError, match="keys"):
        Settings(**settings, host=host)
    assert not Settings(**settings, host=host, without_keys=True).is_local


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "127.0.0.1"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "camp.example"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "localhost.evil.example:8000"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://shop.example"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}, 403),
    ],
    ids=str,
)
def test_pages_of_other_sites(settings: dict[str, Any], headers: dict[str, str], status: int) -> None:
    with served(**settings, allow_origin=("https://shop.example",), allow_host=("Camp.Example",)) as running:
        done = running("GET", "/v1/items/1", headers=headers)
        assert done.status_code == status
        allowed = done.headers.get("access-control-allow-origin")
        assert allowed == ("https://shop.example" if headers.get("Origin") == "https://shop.example" else None)


def test_every_answer_has_the_headers(keyed: Served) -> None:
    for path, status in (("/", 200), ("/health", 200), ("/nowhere", 401), ("/v1/items/1", 401)):
        done = keyed("GET", path, headers={"X-Request-ID": "mine-1"})
        assert done.status_code == status
        assert done.headers["x-request-id"] == "mine-1"
        assert done.headers["x-content-type-options"] == "nosniff"
        assert done.headers["referrer-policy"] == "no-referrer"
        assert done.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in done.headers["content-security-policy"]
        assert "server" not in done.headers
    assert keyed("GET", "/", headers={"X-Request-ID": "a b\x7f"}).headers["x-request-id"] != "a b\x7f"


def test_a_page_allows_its_own_blocks_by_their_hashes() -> None:
    page = Page.of("<style>a{}</style><script>1</script><script type=module>2</script>")
    policy = page.headers["Content-Security-Policy"]
    script = "'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"  # of "1"
    assert f"script-src {script} 'sha256-" in policy
    assert "style-src 'sha256-" in policy
    assert "unsafe" not in policy
    assert "script-src 'none'" in Page.of("<p>").headers["Content-Security-Policy"]


# Fetching


def test_nothing_is_fetched_unless_its_host_is_allowed() -> None:
    fetcher = Fetcher(("pictures.example", "other.example:8080"), 1000)
    for url in (
        "http://127.0.0.1/a.png",
        "http://pictures.example:81/a.png",
        "https://other.example/a.png",
        "http://user:password@pictures.example/a.png",
        "http://pictures.example.evil/a.png",
        "http://pictures.example/a b",
        "http://[/a.png",
        "http://pictures.example:x/",
        "ftp://pictures.example/a.png",
    ):
        with pytest.raises(Problem) as refused:
            fetcher.fetch(url, Spent())
        assert refused.value.status == 422


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]"]
)
def test_an_allowed_host_must_have_a_public_address(host: str) -> None:
    with pytest.raises(Problem) as refused:
        Fetcher((host.strip("[]"), host), 1000).fetch(f"http://{host}/a.png", Spent())
    assert refused.value.status == 422


class Pictures(BaseHTTPRequestHandler):
    """A site with a picture of 900 bytes, one that is too large, and a redirect to the first."""

    def do_GET(self) -> None:
        host, length = self.headers["Host"].split(":")[0], {"/a": 900, "/large": 2000}.get(self.path)
        self.send_response(200 if length else 302 if self.path == "/moved" else 404)
        self.send_header("Location", "/a")
        self.end_headers()
        self.wfile.write((host.encode() * 1000)[: length or 0])

    def log_message(self, form: str, *arguments: Any) -> None:
        pass


def test_a_picture_is_fetched_from_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's name stands for this machine here, which counts as public for once."""
    with HTTPServer(("127.0.0.1", 0), Pictures) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        port = site.server_address[1]
        entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: [entry])
        monkeypatch.setattr(fetching, "is_public", lambda address: True)
        fetcher = Fetcher((f"pictures.example:{port}", "pictures.example:1"), 1000)
        try:
            spent = Spent()
            assert fetcher.fetch(f"http://pictures.example:{port}/a", spent) == (b"pictures.example" * 60)[:900]
            with pytest.raises(Problem) as refused:  # the second one, too, has 900 bytes, of 1000
                fetcher.fetch(f"http://pictures.example:{port}/a", spent)
            assert refused.value.status == 413
            with pytest.raises(Problem) as refused:  # no time is left
                fetcher.fetch(f"http://pictures.example:{port}/a", Spent(ends=0.0))
            assert refused.value.status == 502
            for path, status in (("large", 413), ("moved", 502), ("none", 502)):
                with pytest.raises(Problem) as refused:
                    fetcher.fetch(f"http://pictures.example:{port}/{path}", Spent())
                assert refused.value.status == status
        finally:
            site.shutdown()
            thread.join()
    with pytest.raises(Problem) as refused:  # nothing listens there any more
        fetcher.fetch(f"http://pictures.example:{port}/a", Spent())
    assert refused.value.status == 502


def test_public_addresses() -> None:
    assert all(map(is_public, ("8.8.8.8", "2001:4860:4860::8888")))
    private = ("0.0.0.0", "100.64.0.1", "192.168.0.1", "224.0.0.1", "fe80::1%eth0", "fd00::1", "::", "2002:a00:1::")
    assert not any(map(is_public, private))


# What answers do not show


def test_paths_of_the_machine_are_hidden_and_plain_words_stay() -> None:
    settings = Settings(Path("bundle"), index=Path("photos/a.index"))
    hidden = Services(settings, Turns(), lambda service: None).hidden
    told = f"the bundle at {Path('bundle').absolute()} does not fit photos/a.index: expected a bundle"
    shown = problem_of(InputError(told), hidden).detail
    assert shown == "the bundle at the bundle does not fit the index: expected a bundle"
