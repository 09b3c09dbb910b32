"""A real Triton server of the package nvidia-pytriton, which has the Python backend only."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VENV = os.environ.get("CAMP_TRITON_VENV", "")
STUB = Path(__file__).parents[1] / "triton_stub.py"
PACKAGES = next(Path(VENV).glob("lib/python3*/site-packages"), Path()) if VENV else Path()
VERSION = PACKAGES.parent.name.removeprefix("python")
PYTHON_STUB = PACKAGES / "pytriton" / "tritonserver" / "python_backend_stubs" / VERSION / "triton_python_backend_stub"
needs_triton = pytest.mark.skipif(
    not VENV or not PYTHON_STUB.exists(),
    reason="CAMP_TRITON_VENV names no environment with nvidia-pytriton for its Python",
)


def with_stubs(repository: Path) -> None:
    """Serve each graph by a Python model that runs the ONNX file; configurations change in the backend alone."""
    for path in repository.glob("*/config.pbtxt"):
        text = path.read_text(encoding="utf-8")
        if 'backend: "onnxruntime"' in text:
            path.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'), encoding="utf-8")
            shutil.copy(STUB, path.parent / "1" / "model.py")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def triton_server(repository: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """Serve a repository; yields the ports of HTTP and of gRPC.

    Args:
        repository: The model repository.
        folder: An empty folder for the backend and the log.
    """
    packages = PACKAGES
    shutil.copytree(packages / "pytriton" / "tritonserver" / "backends", folder / "backends")
    shutil.copy(PYTHON_STUB, folder / "backends" / "python" / PYTHON_STUB.name)
    http, grpc, metrics = _free_ports(3)
    environment = os.environ | {
        "LD_LIBRARY_PATH": f"{sysconfig.get_config_var('LIBDIR')}:{packages / 'nvidia_pytriton.libs'}",
        "PATH": f"{Path(VENV) / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
    }
    command = [packages / "pytriton" / "tritonserver" / "bin" / "tritonserver", "--model-repository", repository]
    command += ["--backend-directory", folder / "backends", "--http-port", http, "--grpc-port", grpc]
    command += ["--metrics-port", metrics, "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1"]
    command += ["--strict-model-config", "true", "--log-verbose", "0"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([str(part) for part in command], env=environment, stdout=output, stderr=output)
        try:
            _wait(process, http, log)
            yield http, grpc
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], http: int, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(re.sub(r"\n\s+", " ", log.read_text(errors="replace"))[-6000:])
