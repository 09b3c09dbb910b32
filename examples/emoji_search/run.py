"""Search emoji by words, in one command: fetch and build the data set, train three models, export, evaluate,
write a page.

    python -m examples.emoji_search.run --output build/emoji

The gates of one number (`scalar`) with word vectors learned from the captions, and these and the gates of the paper (`paper`)
with a frozen sentence encoder. The output folder receives results.json and index.html, which needs nothing but itself.

What is done is kept: packages, data set, trainings and measurements. So a run that was stopped goes on; to begin anew,
remove the folder.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from camp_sdk import Gallery, Retriever, Split, evaluate, load_split
from camp_sdk.commands.eval import evaluation_table
from camp_sdk.evaluation import work_of
from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.progress import progress_bar, progress_bars
from camp_sdk.runtime.errors import InputError
from camp_sdk.terminal import progress, run_command, show_step, stderr
from examples._shared.pages import small_picture, write_page
from examples._shared.sweep import configs_of, install_line, measured_run, runnable, title_of, write_json
from examples.emoji_search.build_data import NAME, build
from examples.emoji_search.fetch import fetch
from examples.emoji_search.packages import STYLES

# Options of export/train.py.
RECIPE: dict[str, Any] = {
    "width": 192,
    "word_width": 300,
    "vision": "efficientnet-lite0",
    "epochs": 12,
    "batch_size": 128,
    "neighbours": 1,
    "negatives": 4,
    "learning_rate": 1.5e-3,
    "precision": "bf16-mixed",
    "softmax_weight": 1.0,
    "global_weight": 1.0,
    "begin_as_distance": True,
    "weight_decay": 0.05,
    "dropout": 0.4,
    "word_dropout": 0.2,
    "unknown_words": 0.2,
    "min_count": 9,
}
OF_LEARNED_WORDS = ("word_width", "unknown_words", "min_count")  # a sentence encoder brings its own
OF_SENTENCES = {"epochs": 6}  # it needs fewer
SENTENCES = "all-minilm-l6-v2"
MODELS = (("scalar", LEARNED), ("scalar", SENTENCES), ("paper", SENTENCES))
COUNTS = {"test": 300, "dev": 100}
CHECKPOINT = "last.ckpt"  # dev is 100 pictures: the learning rate's end is a better choice than its best epoch
QUERIES = 8
FREE_QUERIES = ("something to keep the rain off", "a hot drink in the morning", "an animal that hops")
SHOWN = 5
PIXELS = 96  # of a picture on the page
TEMPLATE = Path(__file__).with_name("search_page.html")
CHANGES = "Pictures are scaled on this page."
VERSIONS = ("camp-sdk", "torch", "lightning", "onnxruntime", "numpy")


def main(
    output: Annotated[Path, typer.Option(help="Folder of data, runs and results.")] = Path("build/emoji"),
    packages: Annotated[
        Path | None, typer.Option(help="Folder of the fetched tarballs. Default: packages in --output.")
    ] = None,
) -> None:
    """Fetch, build, train, export, evaluate, and write a page."""
    packages, data = packages or output / "packages", output / "data"
    if not data.exists():
        show_step(f"python -m examples.emoji_search.fetch --output {packages}")
        fetch(packages)
        show_step(f"python -m examples.emoji_search.build_data --packages {packages} --output {data}")
        build(packages, data, COUNTS)
    report(data, output, RECIPE)


def report(data: Path, output: Path, recipe: dict[str, Any]) -> None:
    """Train and measure every model whose packages are here, and write results.json and the page, which shows them."""
    wanted = list(configs_of(MODELS, data, output, recipe, OF_LEARNED_WORDS, OF_SENTENCES))
    runs = runnable(wanted)
    models = [measured_run(config, lambda bundle: measure(bundle, data), CHECKPOINT) for config in runs]
    best = max(range(len(models)), key=lambda number: models[number]["dev"]["rsum"])
    missing = sorted({config.words for config in wanted} - {config.words for config in runs})
    results = {
        "recipe": recipe,
        "recipe_of_sentences": OF_SENTENCES,
        "data": describe_data(data),
        "unseen": unseen_words(data),
        "models": models,
        "left_out": [{"words": words, "install": install_line(words)} for words in missing],
        "best": title_of(models[best]),
        "queries": rank_queries(runs[best].output / "bundle", data),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    write_json(output / "results.json", results)
    write_page(output / "index.html", TEMPLATE, results | page_parts(results, data))
    stderr.print(f"wrote {output / 'results.json'} and {output / 'index.html'}", highlight=False, soft_wrap=True)


def measure(bundle: Path, data: Path) -> dict[str, Any]:
    """Recalls on dev, by which the best model is chosen, and on test, each style by itself: all captions, names alone."""
    test = load_split(data, "test")
    splits = {"dev": (load_split(data, "dev"), 1)}
    splits |= {"test": (test, len(STYLES)), "test_names": (only_names(test, kinds_of(data / "test")), len(STYLES))}
    measured: dict[str, Any] = {}
    with Retriever(bundle) as retriever:
        for name, (split, folds) in splits.items():
            with progress_bars(work_of(split, folds)) as advance:
                result = evaluate(retriever, split, folds, advance)
            Console().print(evaluation_table(result, f"{name}: {result.protocol}"))
            measured[name] = result.as_dict()
        return {"backend": retriever.backend, **measured}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """What a split says of each of its pictures."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def kinds_of(folder: Path) -> list[str]:
    """What each caption of a split is: name, tags, ..."""
    return [kind for row in read_rows(folder) for kind in row["kinds"]]


def only_names(split: Split, kinds: list[str]) -> Split:
    """The same pictures, of whose captions only the names are left: short queries."""
    chosen = np.flatnonzero(np.array(kinds) == NAME)
    captions = [split.captions[index] for index in chosen]
    return replace(split, captions=captions, image_of_caption=split.image_of_caption[chosen])


def describe_data(data: Path) -> dict[str, Any]:
    """What is in each split: counts, and the styles in their order."""
    rows = {split: read_rows(data / split) for split in ("train", "dev", "test")}
    return {
        split: {
            "pictures": len(own),
            "concepts": len({row["hexcode"] for row in own}),
            "families": len({row["family"] for row in own}),
            "captions": sum(len(row["captions"]) for row in own),
            "styles": list(dict.fromkeys(row["style"] for row in own)),
        }
        for split, own in rows.items()
    }


def unseen_words(data: Path) -> dict[str, int]:
    """How many different words the test captions have, how many of them no training caption has, and in how many names."""
    known = {word for row in read_rows(data / "train") for caption in row["captions"] for word in words_of(caption)}
    test = read_rows(data / "test")
    words = {word for row in test for caption in row["captions"] for word in words_of(caption)}
    names = {row["hexcode"]: words_of(row["concept"]) for row in test}
    return {
        "words": len(words),
        "unseen": len(words - known),
        "names_with_unseen": sum(not name <= known for name in names.values()),
    }


def words_of(caption: str) -> set[str]:
    """The different words of a caption."""
    return set(re.findall(r"\w+", caption.lower()))


def rank_queries(bundle: Path, data: Path) -> list[dict[str, Any]]:
    """Names of test concepts at even distances, not chosen by their outcome, and free queries; against all test pictures."""
    rows, images = read_rows(data / "test"), load_split(data, "test").images
    chosen = np.linspace(0, len(rows) // len(STYLES) - 1, QUERIES).astype(int)
    queries = [(rows[index]["concept"], rows[index]["hexcode"]) for index in chosen]
    queries += [(query, None) for query in FREE_QUERIES]
    with Retriever(bundle) as retriever, progress_bar("encoding images", len(images)) as advance:
        gallery = retriever.encode_images(images, on_progress=advance)
        return [query_card(retriever, gallery, query, rows) for query in progress(queries, "ranking")]


def query_card(
    retriever: Retriever, gallery: Gallery, query: tuple[str, str | None], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """The best pictures of a query, and the place of the first right one; learned words may know no word of it."""
    text, hexcode = query
    try:
        matches = retriever.rank(text, gallery, top_k=len(gallery))
    except InputError:
        matches = []
    right = [rows[match.corpus_id]["hexcode"] == hexcode for match in matches]
    shown = [
        {name: rows[match.corpus_id][name] for name in ("file_name", "concept", "style")}
        | {"score": round(match.score, 6), "right": is_right}
        for match, is_right in zip(matches[:SHOWN], right, strict=False)
    ]
    return {"query": text, "hexcode": hexcode, "place": right.index(True) + 1 if any(right) else None, "matches": shown}


def page_parts(results: dict[str, Any], data: Path) -> dict[str, Any]:
    """What the page needs beside the results: its tables row by row, pictures and notices."""
    tables = {name: [(title_of(model), model[name]) for model in results["models"]] for name in ("test", "test_names")}
    names = {match["file_name"] for card in results["queries"] for match in card["matches"]}
    pictures = {name: small_picture(data / "test" / name, PIXELS) for name in names}
    notice = (data / "notices" / "NOTICE.md").read_text(encoding="utf-8")
    return {"tables": tables, "pictures": pictures, "notice": notice, "changes": CHANGES}


if __name__ == "__main__":
    run_command(main)
