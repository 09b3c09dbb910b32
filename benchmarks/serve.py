"""`camp serve` under load, on loopback: throughput, latency, twice its capacity, and reloading.

    python benchmarks/serve.py --output build/bench-serve --demo build/demo

It serves the demo's pictures with the demo's bundle, which `make demo` makes, and synthetic features with the paper's
network (d = 1024, random weights). The clients run in this process, beside the server, on the same cores. The results
are written to benchmarks/results/serve.json.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import typer
from index import FEATURE_WIDTH, QUERY, fresh, make_bundle
from machine import describe
from rich.console import Console
from rich.table import Table

from camp_sdk import Retriever
from camp_sdk.data import load_split
from camp_sdk.progress import progress_bar
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import run_command

RESULTS = Path(__file__).parent / "results"
BACKEND, TOP_K, SHORTLIST, TEXTS = "onnxruntime", 10, 200, 64
CLIENTS = (1, 8, 32)
ROUNDS = 3  # of the loop without a server and of each number of clients, in turns
RELOADS = 8
MOST_AT_ONCE = 512  # requests that the clients wait for
WRITE_KEY = "a key of the benchmark, for reloading".replace(" ", "-")
TOLERANCE = 1e-4  # of a score: texts that are scored together are padded to the longest, which moves its last bits


@dataclass(frozen=True)
class Case:
    """What is served.

    Args:
        name: Its name in the table.
        bundle: The bundle.
        index: The index.
        texts: The queries.
    """

    name: str
    bundle: Path
    index: Path
    texts: list[str]


@dataclass
class Load:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)  # of each answer that was accepted
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    took: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def rate(self) -> float:
        """Accepted requests per second."""
        return len(self.seconds) / self.took

    def percentile(self, share: float) -> float:
        """Milliseconds within which a share of the accepted requests was answered."""
        return 1e3 * float(np.quantile(self.seconds, share))


class Clients:
    """Clients of one server, which know the right answers; each is a thread with a plain connection.

    Args:
        address: The server.
        case: What it serves.
        expected: The keys and scores of each text.
    """

    def __init__(self, address: str, case: Case, expected: list[dict[str, float]]) -> None:
        self._host, self._texts, self._expected = urlsplit(address).netloc, case.texts, expected

    def closed(self, clients: int, seconds: float) -> Load:
        """Clients that each ask again when they are answered, or when a refusal says."""
        load, numbers, begun = Load(), itertools.count(), time.perf_counter()

        def ask_again_and_again() -> None:
            connection = HTTPConnection(self._host)
            while time.perf_counter() - begun < seconds:
                wait = self._ask(connection, next(numbers), load, time.perf_counter())
                if wait:
                    connection.close()
                    time.sleep(min(wait, max(0.0, begun + seconds - time.perf_counter())))
            connection.close()

        with ThreadPoolExecutor(clients) as threads:
            for asking in [threads.submit(ask_again_and_again) for _ in range(clients)]:
                asking.result()
        load.took = time.perf_counter() - begun
        return load

    def one_by_one(self, seconds: float) -> Iterator[float]:
        """Yields the seconds of each answer to one client."""
        load, numbers, begun = Load(), itertools.count(), time.perf_counter()
        connection = HTTPConnection(self._host)
        while time.perf_counter() - begun < seconds:
            self._ask(connection, next(numbers), load, time.perf_counter())
            yield load.seconds[-1]
        connection.close()

    def open(self, rate: float, seconds: float) -> Load:
        """Requests at a fixed rate, whatever becomes of those before; each has a connection of its own."""
        load, begun, asked = Load(), time.perf_counter(), []

        def ask(number: int, due: float) -> None:
            connection = HTTPConnection(self._host)
            self._ask(connection, number, load, due)
            connection.close()

        with ThreadPoolExecutor(MOST_AT_ONCE) as threads:
            for number in range(int(rate * seconds)):
                due = begun + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                asked.append(threads.submit(ask, number, due))
            for asking in asked:
                asking.result()
        load.took = time.perf_counter() - begun
        return load

    def _ask(self, connection: HTTPConnection, number: int, load: Load, begun: float) -> float:
        """Ask once; how many seconds a refusal asks to wait, 0 for an answer."""
        number %= len(self._texts)
        body = json.dumps({"query": self._texts[number], "top_k": TOP_K, "shortlist": SHORTLIST})
        connection.request("POST", "/v1/search", body, {"Content-Type": "application/json"})
        done = connection.getresponse()
        answer = json.loads(done.read())
        seconds = time.perf_counter() - begun
        with load.lock:
            load.statuses[done.status] += 1
            if done.status != 200:
                return float(done.headers["Retry-After"])
            load.seconds.append(seconds)
            found = {match["key"]: match["score"] for match in answer["matches"]}
            load.wrong += not _is_right(found, self._expected[number])
            return 0.0


def _is_right(found: dict[str, float], expected: dict[str, float]) -> bool:
    """Whether scores are right, and so are keys but for those whose scores are as good as equal to the last."""
    last = min(expected.values()) + TOLERANCE
    pairs = zip(found.values(), expected.values(), strict=True)
    sure = {key for key, score in expected.items() if score > last}
    return sure <= found.keys() and all(abs(one - other) < TOLERANCE for one, other in pairs)


@contextmanager
def serving(case: Case, folder: Path) -> Iterator[tuple[str, int]]:
    """A server in a process of its own: its address and its process's number."""
    keys, log = folder / "write-keys.txt", folder / "serve.log"
    keys.write_text(f"{WRITE_KEY}\n", encoding="utf-8")
    arguments = ["serve", case.bundle, "--index", case.index, "--port", 0, "--write-keys", keys, "--backend", BACKEND]
    with log.open("w", encoding="utf-8") as output:
        camp = Path(sys.executable).with_name("camp")  # of the environment that runs this file
        process = subprocess.Popen([camp, *map(str, arguments)], stderr=output)
    try:
        yield _address(log), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _address(log: Path) -> str:
    """The address that a server says it listens at, once it is ready."""
    for _ in range(600):
        found = re.search(r"listening at (http://\S+)", log.read_text(encoding="utf-8"))
        if found and httpx.get(f"{found[1]}/ready", trust_env=False).status_code == 200:
            return found[1]
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: see {log}")


def measure(case: Case, folder: Path, seconds: float, overload_s: float) -> dict[str, Any]:
    """All figures of one case."""
    with Retriever(case.bundle, BACKEND) as retriever, retriever.open_index(case.index) as index:
        items, expected = len(index), []
        for text in case.texts:
            expected.append({match.key or "": match.score for match in retriever.rank(text, index, TOP_K, SHORTLIST)})
    with serving(case, folder) as (address, process):
        clients = Clients(address, case, expected)
        clients.closed(8, 2)  # warm
        loads: dict[int, list[Load]] = {count: [] for count in CLIENTS}
        bare = []
        for _ in range(ROUNDS):
            bare.append(loop(case, seconds))
            for count, found in loads.items():
                found.append(clients.closed(count, seconds))
        result = _throughput(bare, loads) | {"items": items}
        result["added_ms_1_client"] = 1e3 * added(case, clients, 2 * seconds)
        capacity = statistics.median(load.rate for load in loads[CLIENTS[-1]])
        result |= overloaded(clients, capacity, overload_s, process)
        result |= reloaded(clients, address, seconds)
    return {"case": case.name} | result


def loop(case: Case, seconds: float) -> list[float]:
    """The seconds of each call of `Retriever.rank`, one after another, without a server."""
    with Retriever(case.bundle, BACKEND) as retriever, retriever.open_index(case.index) as index:
        for text in case.texts[:3]:
            retriever.rank(text, index, TOP_K, SHORTLIST)
        begun, taken = time.perf_counter(), []
        for text in itertools.cycle(case.texts):
            start = time.perf_counter()
            if start - begun > seconds:
                break
            retriever.rank(text, index, TOP_K, SHORTLIST)
            taken.append(time.perf_counter() - start)
    return taken


def added(case: Case, clients: Clients, seconds: float) -> float:
    """The median of the seconds that a request takes longer than the same call of `Retriever.rank`, in turns."""
    differences: list[float] = []
    with Retriever(case.bundle, BACKEND) as retriever, retriever.open_index(case.index) as index:
        for number, served in enumerate(clients.one_by_one(seconds)):
            begun = time.perf_counter()
            retriever.rank(case.texts[number % len(case.texts)], index, TOP_K, SHORTLIST)
            differences.append(served - (time.perf_counter() - begun))
    return statistics.median(differences[3:])  # the first ones prepare


def _throughput(bare: list[list[float]], loads: dict[int, list[Load]]) -> dict[str, float]:
    rate = statistics.median(len(taken) / sum(taken) for taken in bare)
    latency = statistics.median(itertools.chain(*bare))
    found = {"loop_pairs_per_s": rate * SHORTLIST, "loop_ms": 1e3 * latency}
    for count, all_loads in loads.items():
        served = statistics.median(load.rate for load in all_loads)
        found[f"pairs_per_s_{count}_clients"] = served * SHORTLIST
        found[f"of_loop_{count}_clients"] = served / rate
    found["wrong"] = sum(load.wrong for all_loads in loads.values() for load in all_loads)
    return found


def overloaded(clients: Clients, capacity: float, seconds: float, process: int) -> dict[str, float]:
    """What happens at the capacity, and at twice of it."""
    at = clients.open(capacity, seconds / 3)
    before = _memory(process)
    twice = clients.open(2 * capacity, seconds)
    others = {status for status in twice.statuses if status not in (200, 429)}
    return {
        "capacity_per_s": capacity,
        "p99_ms_at_capacity": at.percentile(0.99),
        "p99_ms_at_twice": twice.percentile(0.99),
        "accepted_at_twice": len(twice.seconds),
        "refused_at_twice": twice.statuses[429],
        "other_statuses": len(others),
        "wrong_at_twice": twice.wrong,
        "memory_before_mb": before / 1e6,
        "memory_after_mb": _memory(process) / 1e6,
    }


def reloaded(clients: Clients, address: str, seconds: float) -> dict[str, float]:
    """Requests that failed while the server opened everything again and again."""
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(clients.closed, 8, seconds)
        for _ in range(RELOADS):
            time.sleep(seconds / (RELOADS + 1))
            key = {"Authorization": f"Bearer {WRITE_KEY}"}
            httpx.post(f"{address}/v1/reload", headers=key, timeout=60, trust_env=False).raise_for_status()
        load = running.result()
    failed = sum(count for status, count in load.statuses.items() if status != 200)
    return {"reloads": RELOADS, "during_reloads": sum(load.statuses.values()), "failed": failed + load.wrong}


def _memory(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024


def demo_case(demo: Path, folder: Path) -> Case:
    """The demo's pictures with the demo's bundle."""
    path, texts = folder / "demo.index", load_split(demo / "data", "dev").captions
    if not path.exists():
        pictures = sorted((demo / "data").rglob("*.png"))
        with (
            Retriever(demo / "bundle", BACKEND) as retriever,
            retriever.open_index(path, create=True) as index,
            progress_bar("encoding", len(pictures)) as encoded,
        ):
            index.add(pictures, on_progress=encoded)
    return Case("demo", demo / "bundle", path, texts[:: max(1, len(texts) // TEXTS)][:TEXTS])


def paper_case(folder: Path) -> Case:
    """Synthetic features with the paper's network, d = 1024."""
    bundle, path = make_bundle(folder, 1024), fresh(folder / "paper.index")
    rng = np.random.default_rng(0)
    with Retriever(bundle, BACKEND) as retriever, retriever.open_index(path, create=True) as index:
        index.add(rng.standard_normal((2000, 36, FEATURE_WIDTH), dtype=np.float32), map(str, range(2000)))
    words = QUERY.split()
    texts = [
        " ".join(f"word{(number * 7 + k) % 500}" for k in range(len(words) + number % 6)) for number in range(TEXTS)
    ]
    return Case("paper, d = 1024", bundle, path, texts)


def main(
    output: Annotated[Path, typer.Option(help="Folder for indexes and logs.")],
    demo: Annotated[Path, typer.Option(help="Folder that `make demo` made.")],
    seconds: Annotated[float, typer.Option(help="Seconds of each round.")] = 8.0,
    overload: Annotated[float, typer.Option(help="Seconds at twice the capacity.")] = 60.0,
) -> None:
    """Measure `camp serve`."""
    output.mkdir(parents=True, exist_ok=True)
    found = []
    for case in (demo_case(demo, output), paper_case(output)):
        found.append(measure(case, output, seconds, overload))
        Console().print(table(found))
    results = describe("numpy", "onnxruntime", "fastapi", "uvicorn", "httpx") | {"cases": found}
    with write_aside(RESULTS / "serve.json") as aside:
        aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table(cases: list[dict[str, Any]]) -> Table:
    """The figures, a column for each case."""
    shown = Table("", *(case["case"] for case in cases))
    for name in list(cases[0])[1:]:
        shown.add_row(name, *(f"{case[name]:,.4g}" for case in cases))
    return shown


if __name__ == "__main__":
    run_command(main)
