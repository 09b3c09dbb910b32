"""The living index: writing, opening, finding and fetching, at several sizes.

    python benchmarks/index.py --output build/bench-index

Most items are synthetic: vectors in clusters, as those of real pictures are, and tensors of random bytes. Only writing
beside the encoder, and ranking, use a network (the paper's, with random weights). With --demo, the pictures of the demo
are measured too, as its trained network encodes them. The results are written to benchmarks/results/index.json.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from machine import describe, median_s
from rich.console import Console
from rich.table import Table

from camp_sdk import Index, Retriever
from camp_sdk.data import load_split
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.checkpoint import KEY, Origin
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.index.adding import encoded_rows
from camp_sdk.index.changes import Entry
from camp_sdk.index.layout import as_json, make_layout, shapes_in
from camp_sdk.index.metadata import checked_metadata
from camp_sdk.index.where import compile_where
from camp_sdk.progress import progress_bar
from camp_sdk.ranking import nearest_items
from camp_sdk.runtime.encoded import global_vectors
from camp_sdk.runtime.files import write_aside
from camp_sdk.terminal import run_command

RESULTS = Path(__file__).parent / "results"
FEATURE_WIDTH, SHORTLIST, NEAREST = 64, 200, 100
CLUSTERS, SPREAD = 2000, 0.5  # of the vectors; a picture's neighbours are others of its cluster
COMMIT = 512
ROUNDS = 25
ADDED = 2048  # items, encoded and written
QUERY = "word1 word2 word3 word4 word5 word6"
PERCENT = {"album": "7"}  # one of a hundred albums
OPENED = """
import re, sys, time
from camp_sdk import Retriever
retriever = Retriever(sys.argv[1], "onnxruntime")
start = time.perf_counter()
index = retriever.open_index(sys.argv[2])
with index._snapshots.open(retriever.model) as snapshot:
    len(snapshot.store.columns.places)
opened = time.perf_counter() - start
print(opened, int(re.search(r"VmRSS:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024)
"""


@dataclass(frozen=True)
class Made:
    """Synthetic items.

    Args:
        count: How many there are.
        regions: Regions of each.
        width: The size d of a vector.
    """

    count: int
    regions: int
    width: int = 256

    def vectors(self, start: int, stop: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Unit vectors in clusters, float32 [n, d]."""
        centres = np.random.default_rng(1).standard_normal((CLUSTERS, self.width), dtype=np.float32)
        rng = np.random.default_rng(start)
        chosen = centres[rng.integers(0, CLUSTERS, stop - start)]
        found = chosen + SPREAD * rng.standard_normal((stop - start, self.width), dtype=np.float32)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def metadata(self, number: int) -> dict[str, Any]:
        """An album of a hundred, a year, and tags."""
        return {"album": str(number % 100), "year": 2000 + number % 25, "tags": [f"tag {number % 7}"]}


# Many items have small tensors, so that they fit a disk.
CASES = (Made(20_000, 36), Made(100_000, 2), Made(1_000_000, 2), Made(20_000, 36, 1024))


def make_bundle(folder: Path, width: int) -> Path:
    """The bundle of a network with random weights."""
    target = folder / f"bundle-{width}"
    if not target.exists():
        torch.manual_seed(0)
        tokenizer = build_tokenizer([" ".join(f"word{k}" for k in range(500))], 1)
        config = ModelConfig(tokenizer.get_vocab_size(), "paper", width, FEATURE_WIDTH)
        examples = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 36, FEATURE_WIDTH), dtype=np.float32))
        origin = Origin(config, None, tokenizer.to_str(), examples, [QUERY] * 8, {"note": "random weights"})
        weights = {f"model.{name}": tensor for name, tensor in Camp(config).state_dict().items()}
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": weights, KEY: origin.as_dict()}, folder / f"model-{width}.ckpt")
        export_bundle(folder / f"model-{width}.ckpt", target)
    return target


def fill(index: Index, retriever: Retriever, made: Made, first: int = 0) -> float:
    """Write synthetic items, and return the items per second, without the time that making them takes."""
    features = np.random.default_rng(0).standard_normal((COMMIT, made.regions, FEATURE_WIDTH), dtype=np.float32)
    tensors = dict(retriever.encode_images(features, precision=index.precision).encoded.tensors)
    manifest, taken = retriever.bundle.manifest, 0.0
    shapes = shapes_in("image", manifest, index.precision, tensors)
    layout = make_layout("image", manifest, index.precision, shapes)
    with progress_bar("writing", made.count) as advance:
        for start in range(first, first + made.count, COMMIT):
            stop = min(start + COMMIT, first + made.count)
            tensors["image.global"] = made.vectors(start, stop)
            some = {name: array[: stop - start] for name, array in tensors.items()}
            entries = [Entry(f"{n:09}", metadata=checked_metadata(made.metadata(n), "it")) for n in range(start, stop)]
            begun = time.perf_counter()
            rows = encoded_rows(layout, some, np.zeros(stop - start, np.int64))
            with index._changing() as changes:
                if changes.state.shapes is None:
                    changes.set_shapes(as_json(shapes))
                for entry, row in zip(entries, rows, strict=True):
                    changes.put(entry, row)
            taken += time.perf_counter() - begun
            advance(stop - start)
    return made.count / taken


def measure_size(retriever: Retriever, folder: Path, made: Made) -> dict[str, Any]:
    """All figures of one size."""
    path = fresh(folder / f"{made.count}-{made.width}.index")
    with retriever.open_index(path, create=True) as index:
        found: dict[str, Any] = {"items": made.count, "regions": made.regions, "width": made.width}
        found |= measure_adding(retriever, folder, made)
        found["write_per_s"] = fill(index, retriever, made)
        begun = time.perf_counter()
        retriever.rank(QUERY, index, 1, SHORTLIST)  # writes the file of vectors
        found["vector_file_s"] = time.perf_counter() - begun
    found |= measure_opening(retriever, path)
    queries = [made.vectors(seed, seed + 1) for seed in range(10, 10 + ROUNDS)]
    with retriever.open_index(path) as index:
        found |= measure_queries(retriever, index, queries[0])
        found |= measure_ann(retriever, index, queries)
        found |= {"file_bytes": index.info().file_bytes, "item_bytes": index.info().item_bytes}
        found |= measure_growth(retriever, index, made)
    return found


def measure_adding(retriever: Retriever, folder: Path, made: Made) -> dict[str, float]:
    """Items per second of the encoder alone, and of `Index.add`, which writes what it encodes; both take turns."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((ADDED, made.regions, FEATURE_WIDTH), dtype=np.float32)
    times: list[tuple[float, float]] = []
    for turn in range(5):
        path = fresh(folder / "adding.index")
        with retriever.open_index(path, create=True) as index:
            start = time.perf_counter()
            retriever.encode_images(features, precision=index.precision)
            encoded = time.perf_counter()
            index.add(features, (f"{turn}, {number}" for number in range(ADDED)), map(made.metadata, range(ADDED)))
            times.append((encoded - start, time.perf_counter() - encoded))
    encode, add = (ADDED / statistics.median(taken) for taken in zip(*times, strict=True))
    return {"encode_per_s": encode, "add_per_s": add}


def measure_opening(retriever: Retriever, path: Path) -> dict[str, float]:
    """Seconds to open an index in a fresh process, and the memory of the process then."""
    command = [sys.executable, "-c", OPENED, str(retriever.bundle.folder), str(path)]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for _ in range(3)]
    return {"open_s": min(float(run[0]) for run in runs), "memory_bytes": max(float(run[1]) for run in runs)}


def measure_queries(
    retriever: Retriever, index: Index, query: np.ndarray[Any, np.dtype[np.float32]], text: str = QUERY
) -> dict[str, float]:
    """Milliseconds of the parts of a query, and of the whole beside scoring the same pairs from memory."""
    model = retriever.model
    condition = compile_where(PERCENT)
    with index._snapshots.open(model) as snapshot:
        everything = snapshot.candidates(model, None).encoded
        first = median_s(lambda: nearest_items(query, everything, SHORTLIST))
        some = min(SHORTLIST, len(snapshot.candidates(model, condition).encoded))
        filtered = median_s(lambda: nearest_items(query, snapshot.candidates(model, condition).encoded, some))
        places = np.sort(np.random.default_rng(0).choice(len(everything), SHORTLIST, replace=False))
        fetch = median_s(lambda: snapshot.store.read(places))
    gallery = _gallery_of(retriever, index, places)
    whole, memory = in_turns(
        lambda: retriever.rank(text, index, 20, SHORTLIST), lambda: retriever.rank(text, gallery, 20)
    )
    return {
        "first_stage_ms": 1e3 * first,
        "filtered_ms": 1e3 * filtered,
        "fetch_ms": 1e3 * fetch,
        "rank_ms": 1e3 * whole,
        "rank_from_memory_ms": 1e3 * memory,
        "overhead": whole / memory - 1,
    }


def measure_ann(
    retriever: Retriever, index: Index, queries: list[np.ndarray[Any, np.dtype[np.float32]]]
) -> dict[str, float]:
    """The approximate search: seconds to make it, its milliseconds, and what it finds of the exact one's nearest."""
    begun = time.perf_counter()
    index.build_ann()
    made = time.perf_counter() - begun
    with index._snapshots.open(retriever.model) as snapshot:
        everything = snapshot.candidates(retriever.model, None).encoded
        exact = [nearest_items(query, everything, NEAREST)[0] for query in queries]
    with retriever.open_index(index.path, ann=True) as opened, opened._snapshots.open(retriever.model) as snapshot:
        everything = snapshot.candidates(retriever.model, None).encoded
        found = [nearest_items(query, everything, SHORTLIST)[0] for query in queries]
        searched = median_s(lambda: nearest_items(queries[0], everything, SHORTLIST))
    shares = [len(np.intersect1d(*both)) / NEAREST for both in zip(exact, found, strict=True)]
    file = index.path.with_name(f"{index.path.name}-ann")
    return {
        "ann_made_s": made,
        "ann_bytes": file.stat().st_size,
        "ann_ms": 1e3 * searched,
        "ann_nearest_100_found": statistics.mean(shares),
    }


def measure_demo(demo: Path, folder: Path) -> dict[str, Any]:
    """The figures of the demo's pictures, with its trained network."""
    path = fresh(folder / "demo.index")
    pictures = sorted((demo / "data").rglob("*.png"))
    with Retriever(demo / "bundle", "onnxruntime") as retriever, retriever.open_index(path, create=True) as index:
        with progress_bar("encoding", len(pictures)) as encoded:
            index.add(pictures, metadata=({"album": str(n % 100)} for n in range(len(pictures))), on_progress=encoded)
        captions = load_split(demo / "data", "dev").captions
        texts = captions[:: max(1, len(captions) // ROUNDS)][:ROUNDS]
        vectors = [global_vectors(retriever.model.encode_texts([text]).tensors) for text in texts]
        found: dict[str, Any] = {"items": len(index), "width": vectors[0].shape[1]}
        found |= measure_queries(retriever, index, vectors[0], texts[0]) | measure_ann(retriever, index, vectors)
        best = [{match.key for match in retriever.rank(text, index, 10, 0)} for text in texts]
        kept = [{match.key for match in retriever.rank(text, index, 10, SHORTLIST)} for text in texts]
    shares = [len(one & other) / 10 for one, other in zip(best, kept, strict=True)]
    return found | {"shortlist_keeps_of_best_10": statistics.mean(shares)}


def fresh(path: Path) -> Path:
    """The path of an index, without what an earlier run left there."""
    for old in path.parent.glob(f"{path.name}*"):
        old.unlink()
    return path


def in_turns(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of several calls that take turns, so that other load on the machine affects all of them alike."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken[2:]) for taken in times]


def _gallery_of(retriever: Retriever, index: Index, places: Any) -> Any:
    """A gallery of a shortlist, in memory."""
    from camp_sdk import Gallery
    from camp_sdk.runtime.encoded import EncodedImages

    with index._snapshots.open(retriever.model) as snapshot:
        tensors = snapshot.store.read(places)
    return Gallery(EncodedImages(tensors), [None] * len(places), retriever.bundle, index.precision)


def measure_growth(retriever: Retriever, index: Index, made: Made) -> dict[str, float]:
    """By how much the file grows when half of the items are removed and as many are added."""
    before = index.info().file_bytes
    half = made.count // 2
    begun = time.perf_counter()
    index.remove(f"{number:09}" for number in range(0, made.count, 2))
    removed = half / (time.perf_counter() - begun)
    fill(index, retriever, Made(half, made.regions, made.width), made.count)
    return {"remove_per_s": removed, "growth": index.info().file_bytes / before - 1}


def main(
    output: Annotated[Path, typer.Option(help="Folder for the indexes, which take several gigabytes.")],
    items: Annotated[list[int] | None, typer.Option(help="Sizes to measure. Default: all.")] = None,
    demo: Annotated[Path | None, typer.Option(help="Folder that `make demo` made: measure its pictures too.")] = None,
) -> None:
    """Measure the living index."""
    found = []
    for case in CASES:
        if items is None or case.count in items:
            with Retriever(make_bundle(output, case.width), "onnxruntime") as retriever:
                found.append(measure_size(retriever, output, case))
            Console().print(table(found))
    results = describe("numpy", "onnxruntime", "faiss-cpu") | {"sizes": found}
    if demo is not None:
        results["demo"] = measure_demo(demo, output)
        Console().print(table([results["demo"]]))
    if items is None:
        with write_aside(RESULTS / "index.json") as aside:
            aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def table(sizes: list[dict[str, Any]]) -> Table:
    """The figures, a column for each size."""
    shown = Table("", *(f"{size['items']:,}, d = {size['width']}" for size in sizes))
    for name in sizes[0]:
        shown.add_row(name, *(f"{size[name]:,.4g}" for size in sizes))
    return shown


if __name__ == "__main__":
    run_command(main)
