"""Retrievers in other processes: forked, spawned, behind a server that forks; and signals."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import camp_sdk
from camp_sdk import BundleError, Retriever
from camp_sdk.runtime import errors
from camp_sdk.runtime.errors import CampError, MissingExtraError

BACKENDS = ["onnxruntime", "openvino"]
LIMIT_S = 60

# What every script begins with: a retriever that has opened its graphs, and what it answers.
PRELUDE = """
import gc, os, signal, sys
import numpy as np
from camp_sdk import Retriever

bundle, backend = sys.argv[1:3]
features = np.load(sys.argv[3])
QUERY = "a red circle"

def answer(retriever, corpus=features):
    return [(match.corpus_id, match.logit) for match in retriever.rank(QUERY, corpus)]
"""
INHERITED = """
retriever = Retriever(bundle, backend)
gallery = retriever.encode_images(features)
expected = answer(retriever, gallery)
for child in sys.argv[4:]:
    pid = os.fork()
    if not pid:
        exec(child)
        sys.exit(7)
    signal.alarm(20)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    signal.alarm(0)
    assert status == 7, (child, status)
    assert answer(retriever, gallery) == expected
print("done")
"""
CHILDREN = {
    "nothing": "pass",
    "inherits": "assert answer(retriever, gallery) == expected",
    "closes": "retriever.close()",
    "drops": "retriever = None; gc.collect()",
    "drops the gallery, too": "retriever = gallery = None; gc.collect()",
    "makes its own": "assert answer(Retriever(bundle, backend)) == expected",
    "replaces": "retriever = Retriever(bundle, backend); assert answer(retriever) == expected",
    "makes its own and closes it": "own = Retriever(bundle, backend); assert answer(own) == expected; own.close()",
    "closes and goes on": "retriever.close(); assert answer(retriever, gallery) == expected",
    "forks again": "pid = os.fork(); assert answer(retriever, gallery) == expected; pid and os.waitpid(pid, 0)",
}


@pytest.fixture(scope="module")
def features_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("processes") / "features.npy"
    np.save(path, np.random.default_rng(0).standard_normal((10, 5, 12), dtype=np.float32))
    return path


def run(script: str, *arguments: object) -> str:
    """Run a script with PRELUDE; a process that hangs fails the test."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("backend", BACKENDS)
def test_forked_children(feature_bundle: Path, features_file: Path, backend: str) -> None:
    """Each child does one thing with what it inherited, and exits; the parent goes on."""
    assert run(INHERITED, feature_bundle, backend, features_file, *CHILDREN.values()) == "done\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_after_everything_was_closed(feature_bundle: Path, features_file: Path, backend: str) -> None:
    script = """
        with Retriever(bundle, backend) as retriever:
            expected = answer(retriever)
        del retriever
        gc.collect()
        pid = os.fork()
        if not pid:
            assert answer(Retriever(bundle, backend)) == expected
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    """
    run(script, feature_bundle, backend, features_file)


def test_an_engine_in_a_forked_child(feature_bundle: Path, features_file: Path) -> None:
    script = """
        from camp_sdk import BackendError, Bundle
        from camp_sdk.runtime.backends import open_engine
        engines = [open_engine(Bundle(bundle), "image", name) for name in ("onnxruntime", "openvino")]
        expected = [engine.run({"features": features})["image.V"] for engine in engines]
        pid = os.fork()
        if not pid:
            for engine in engines:
                try:
                    engine.run({"features": features})
                except BackendError as error:
                    assert "opened in another process, before a fork; open it in this one" in str(error)
                else:
                    sys.exit(1)
                engine.close()
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        for engine, before in zip(engines, expected):
            assert (engine.run({"features": features})["image.V"] == before).all()
    """
    run(script, feature_bundle, "-", features_file)


POOL = """
import multiprocessing as mp, sys
import numpy as np
from camp_sdk import Retriever

retriever = None

def begin(given):
    global retriever
    retriever = given

def work(corpus):
    return [(match.corpus_id, match.logit) for match in retriever.rank("a red circle", corpus)]

def fail(package):
    from camp_sdk import MissingExtraError
    raise MissingExtraError(package, "plot")

if __name__ == "__main__":
    bundle, backend, file, method = sys.argv[1:]
    features = np.load(file)
    begin(Retriever(bundle, backend))
    expected, gallery = work(features), retriever.encode_images(features)
    with mp.get_context(method).Pool(1, begin, (retriever,)) as pool:
        assert pool.map_async(work, [features, gallery]).get(50) == [expected, expected]
        try:
            pool.map_async(fail, ["matplotlib"]).get(50)
        except ImportError as error:
            assert "matplotlib is not installed" in str(error)
        else:
            sys.exit(1)
"""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes(
    feature_bundle: Path, features_file: Path, tmp_path: Path, backend: str, method: str
) -> None:
    """The retriever, a gallery and an exception cross from process to process."""
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    command = [sys.executable, script, feature_bundle, backend, features_file, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


APP = """
import os
import numpy as np
from camp_sdk import Retriever

retriever = Retriever(os.environ["BUNDLE"], os.environ["BACKEND"])
gallery = retriever.encode_images(np.load(os.environ["FEATURES"]))
retriever.rank("a red circle", gallery)  # before the workers are forked

def app(environ, start_response):
    best = retriever.rank("a red circle", gallery)[0]
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{best.corpus_id} {best.logit!r} {os.getpid()}".encode()]
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_gunicorn_with_preload(feature_bundle: Path, features_file: Path, tmp_path: Path, backend: str) -> None:
    import http.client
    import socket

    (tmp_path / "app.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"BUNDLE": str(feature_bundle), "BACKEND": backend, "FEATURES": str(features_file)}
    command = [
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "--workers",
        "2",
        "--bind",
        f"127.0.0.1:{port}",
        "app:app",
    ]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        with Retriever(feature_bundle, backend) as retriever:
            best = retriever.rank("a red circle", np.load(features_file))[0]
        answers, until = set(), time.monotonic() + LIMIT_S
        while len(answers) < 8 and time.monotonic() < until:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
            try:
                connection.request("GET", f"/{len(answers)}")
                answers.add((len(answers), *connection.getresponse().read().decode().split()[:2]))
            except ConnectionError:
                time.sleep(0.1)  # it is still starting
            finally:
                connection.close()
        assert {answer[1:] for answer in answers} == {(str(best.corpus_id), repr(best.logit))}
        server.send_signal(signal.SIGTERM)
        assert server.wait(LIMIT_S) == 0
        assert "was sent SIG" not in (server.stderr.read() if server.stderr else "")  # gunicorn kills what does not end
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("number", ["SIGINT", "SIGUSR1"])
@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_a_signal_after_openvino_was_closed(picture_bundle: Path, features_file: Path, number: str, order: str) -> None:
    """Its graphs are closed in either order; some order leaves a signal stack behind that was freed."""
    script = """
        from camp_sdk import Bundle
        from camp_sdk.runtime.backends import open_engine
        number, order = sys.argv[4:]
        engines = [open_engine(Bundle(bundle), graph, backend) for graph in ("vision", "image", "text", "scorer")]
        engines[0].run({"pixels": np.zeros((2, 3, 96, 96), np.float32)})
        for engine in engines if order == "forwards" else reversed(engines):
            engine.close()
        del engine, engines
        gc.collect()
        blocks = [bytearray(1 << 20) for _ in range(64)]  # takes over what was freed
        def note(*_): print("handled", flush=True)
        signal.signal(getattr(signal, number), note)
        os.kill(os.getpid(), getattr(signal, number))
        print("goes on", flush=True)
    """
    assert run(script, picture_bundle, "openvino", features_file, number, order).split() == [
        "handled",
        "goes",
        "on",
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_ctrl_c_during_a_call(feature_bundle: Path, features_file: Path, backend: str) -> None:
    script = """
        import threading
        retriever = Retriever(bundle, backend)
        expected = answer(retriever)
        timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                retriever.score_matrix(features, [QUERY] * 500)
        except KeyboardInterrupt:
            assert answer(retriever) == expected
            print("right", flush=True)
    """
    assert run(script, feature_bundle, backend, features_file) == "right\n"


def test_a_pickled_retriever_opens_the_same_bundle(
    bundle_copy: Path, picture_bundle: Path, features: NDArray[np.float32]
) -> None:
    import shutil

    with Retriever(bundle_copy, "onnxruntime", threads=1, memory_budget_bytes=10**8) as retriever:
        content = pickle.dumps(retriever)
        assert len(content) < 2000  # no graphs: they are read again
        gallery = pickle.loads(pickle.dumps(retriever.encode_images(features)))
        with pickle.loads(content) as again:
            assert again.rank("a red circle", gallery) == retriever.rank("a red circle", features)
            assert (again.backend, again._options) == (retriever.backend, retriever._options)
    shutil.rmtree(bundle_copy)
    with pytest.raises(BundleError, match="not found"):
        pickle.loads(content)
    shutil.copytree(picture_bundle, bundle_copy)
    with pytest.raises(BundleError, match=r"holds another bundle .* than when it was pickled"):
        pickle.loads(content)


def _errors() -> list[CampError]:
    from camp_sdk.export.bundling.onnx_files import ExportError
    from camp_sdk.pictures import PictureError

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CampError)]
    assert MissingExtraError in kinds
    plain = [kind("what came") for kind in (*kinds, ExportError, PictureError) if kind is not MissingExtraError]
    return [MissingExtraError("a-package", "plot"), *plain]


@pytest.mark.parametrize("error", _errors(), ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: CampError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_a_ranking_survives_pickling(feature_retriever: Retriever, features: NDArray[np.float32]) -> None:
    ranking = feature_retriever.rank("a red zebra", features)
    again = pickle.loads(pickle.dumps(ranking))
    assert (again, again.unknown_words, type(again)) == (ranking, ("zebra",), camp_sdk.Ranking)
