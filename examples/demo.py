"""The whole product in one run: draw a data set, train CAMP, export it, check it, evaluate it, rank, and write a page.

    python -m examples.demo --output build/demo

Every step is a command or a call of the public interface. The page, index.html, is self-contained.
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from rich.console import Console

from camp_sdk import Evaluation, Explanation, Gallery, Match, Metrics, Retriever, Split, evaluate, load_split
from camp_sdk.commands.eval import evaluation_table
from camp_sdk.evaluation import SCORING, work_of
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.scenes import SceneObject, oracle_recalls, true_captions, write_scenes
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.measure import measure_checkpoint
from camp_sdk.export.training.run import run_training
from camp_sdk.progress import progress_bar, progress_bars
from camp_sdk.runtime.errors import InputError
from camp_sdk.terminal import progress, run_command, show_step, stderr
from examples._shared.pages import data_uri, write_page

TEMPLATE = Path(__file__).with_name("demo_page.html")
COUNTS = {"train": 5000, "dev": 100, "test": 300}
QUERIES = 6
FREE_QUERY = "a large blue star left of a large pink star"
SHADE = np.array([32, 36, 52], np.float32)


def main(
    output: Annotated[Path, typer.Option(help="Folder to create.")] = Path("build/demo"),
    variant: Annotated[str, typer.Option(help="paper or scalar.")] = "paper",
    epochs: Annotated[int, typer.Option(help="Epochs of training; more than 3 are more accurate and take longer.")] = 3,
) -> None:
    """Draw, train, export, check, evaluate, rank, and write a page."""
    if output.exists() and any(output.iterdir()):
        raise InputError(f"{output} is not empty: remove it, or name another folder")
    started = time.monotonic()
    data, run, bundle = output / "data", output / "run", output / "bundle"
    show_step(f"camp scenes --output {data}")
    write_scenes(data, COUNTS)
    show_step(f"camp train --data {data} --variant {variant} --output {run}")
    run_training(TrainConfig(data, run, variant, epochs=epochs))
    show_step(f"camp export --checkpoint {run / 'best.ckpt'} --output {bundle}")
    export_bundle(run / "best.ckpt", bundle)
    test = load_split(data, "test")
    stderr.print("\nevaluating the same test split with PyTorch, for comparison", style="dim")
    with progress_bar(SCORING, work_of(test)[SCORING]) as advance:
        torch_metrics, _ = measure_checkpoint(run / "best.ckpt", data, "test", advance)
    with Retriever(bundle) as retriever:
        show_step(f"camp eval {bundle} --data {data} --split test")
        with progress_bars(work_of(test)) as advance:
            result = evaluate(retriever, test, on_progress=advance)
        Console().print(evaluation_table(result, f"{data} test: {result.protocol}"))
        show_step(f'camp rank {bundle} --images {data / "test"} --query "{FREE_QUERY}"')
        cards = rank_queries(retriever, test, true_of(data / "test"))
        manifest = retriever.bundle.manifest
    page = {
        "cards": cards,
        "rows": table_rows(torch_metrics, result, retriever.backend),
        "oracle": oracle_recalls(data / "test"),
        "protocol": result.protocol,
        "variant": variant,
        "parity": max(check["max_logit_error"] for check in manifest.parity),
        "minutes": (time.monotonic() - started) / 60,
        "version": version("camp-sdk"),
        "counts": COUNTS,
    }
    write_page(output / "index.html", TEMPLATE, page)
    stderr.print(f"wrote {output / 'index.html'} after {page['minutes']:.1f} minutes", highlight=False)


def true_of(folder: Path) -> list[set[str]]:
    """For each picture of a split, every caption that is true of it; the page marks these pictures as "also true"."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [set(true_captions([SceneObject(**item) for item in json.loads(line)["objects"]])) for line in lines]


def rank_queries(retriever: Retriever, test: Split, true: list[set[str]]) -> list[dict[str, Any]]:
    """The cards of evenly spaced captions of the test split, not selected by their results, and of one free query.

    Args:
        retriever: ranks the pictures.
        test: the test split.
        true: for each picture, every caption that is true of it.
    """
    gallery = retriever.encode_images(test.images)
    chosen = np.linspace(0, len(test.captions) - 1, QUERIES).astype(int)
    queries = [(test.captions[i], int(test.image_of_caption[i])) for i in chosen] + [(FREE_QUERY, None)]
    cards = []
    for query, answer in progress(queries, "ranking"):
        card = query_card(retriever, gallery, query, test)
        for match in card["matches"]:
            match["right"] = match["index"] == answer
            match["true"] = query in true[match["index"]]
        cards.append(card | {"place": answer if answer is None else card["order"].index(answer) + 1})
    return cards


def query_card(retriever: Retriever, gallery: Gallery, query: str, test: Split) -> dict[str, Any]:
    """The page's data for one query: the order of all pictures, the five best, and an explanation of the best match."""
    matches = retriever.rank(query, gallery, top_k=len(gallery))
    best = matches[0].corpus_id
    explained = retriever.explain(query, gallery.select([best]))
    return {
        "query": query,
        "order": [match.corpus_id for match in matches],
        "matches": [_shown(match, test) for match in matches[:5]],
        "words": word_pictures(explained, Path(test.images[best])),
    }


def _shown(match: Match, test: Split) -> dict[str, Any]:
    return {
        "rank": match.rank,
        "score": match.score,
        "index": match.corpus_id,
        "picture": data_uri(Image.open(test.images[match.corpus_id])),
        "name": Path(match.document or "").name,
    }


def word_pictures(explained: Explanation, path: Path) -> list[dict[str, str]]:
    """One small picture per word, brightest in the regions that the word attends to.

    Args:
        explained: the explanation of a text and a picture.
        path: the picture file.
    """
    with Image.open(path) as opened:
        picture = np.asarray(opened.convert("RGB"), np.float32)
    shown = []
    for index, word in enumerate(explained.words):
        if word.startswith("<"):
            continue
        weights = explained.word_map(index)
        smooth = Image.fromarray(weights / weights.max()).resize(
            (picture.shape[1], picture.shape[0]), Image.Resampling.BICUBIC
        )
        light = 0.12 + 0.88 * np.clip(np.asarray(smooth), 0, 1)[..., None]
        lit = Image.fromarray((picture * light + SHADE * (1 - light)).astype(np.uint8))
        shown.append({"word": word, "picture": data_uri(lit), "peak": f"{weights.max():.2f}"})
    return shown


def table_rows(torch_metrics: Metrics, result: Evaluation, backend: str) -> list[tuple[str, Metrics]]:
    """The rows of the page's table: PyTorch, the bundle, and the bundle's global vectors alone."""
    rows = [("PyTorch", torch_metrics), (f"bundle ({backend})", result.network)]
    return [*rows, ("global vectors alone", result.global_vectors)] if result.global_vectors else rows


if __name__ == "__main__":
    run_command(main)
