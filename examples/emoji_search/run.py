"""Emoji search by words, in one command: build the data set, train three models, export, evaluate, write a page.

    python -m examples.emoji_search.run --output build/emoji

The three models are `scalar` (gates of one number) with word vectors learned from the captions, and `scalar` and
`paper` (the gates of the paper) with a frozen sentence encoder. The command writes results.json and a self-contained
index.html into the output folder.

Finished steps are kept: packages, data set, training runs and measurements. An interrupted run therefore resumes where
it stopped; to start over, remove the folder.
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

from camp_sdk import Gallery, Ranking, Retriever, Split, evaluate, load_split
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

# Options of `camp train`.
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
OF_LEARNED_WORDS = ("word_width", "unknown_words", "min_count")  # a sentence encoder has its own vocabulary and vectors
OF_SENTENCES = {"epochs": 6}  # a pretrained encoder needs fewer
SENTENCES = "all-minilm-l6-v2"
MODELS = (("scalar", LEARNED), ("scalar", SENTENCES), ("paper", SENTENCES))
COUNTS = {"test": 300, "dev": 100}
CHECKPOINT = "last.ckpt"  # with 100 dev pictures, the last epoch is a better choice than the best one on dev
QUERIES = 8
FREE_QUERIES = ("something to keep the rain off", "a hot drink in the morning", "an animal that hops")
SHOWN = 5
PIXELS = 96  # width and height of a picture on the page
TEMPLATE = Path(__file__).with_name("search_page.html")
CHANGES = "Pictures are scaled on this page."
VERSIONS = ("camp-sdk", "torch", "lightning", "onnxruntime", "numpy")


def main(
    output: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("build/emoji"),
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
    """Train and measure every model whose packages are installed, and write results.json and the page.

    Args:
        data: folder of the data set.
        output: folder of runs and results.
        recipe: options of `camp train`.
    """
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
    """Recalls of a bundle on dev, which selects the best model, and on test, with all captions and with names only.

    Each style of test is ranked by itself, and the recalls are the mean over the styles.
    """
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
    """The metadata of each picture of a split."""
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def kinds_of(folder: Path) -> list[str]:
    """The kind of each caption of a split: name, tags, ..."""
    return [kind for row in read_rows(folder) for kind in row["kinds"]]


def only_names(split: Split, kinds: list[str]) -> Split:
    """The same pictures with only those captions that are names: short queries."""
    chosen = np.flatnonzero(np.array(kinds) == NAME)
    captions = [split.captions[index] for index in chosen]
    return replace(split, captions=captions, image_of_caption=split.image_of_caption[chosen])


def describe_data(data: Path) -> dict[str, Any]:
    """The counts of each split, and its styles in order."""
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
    """Count the words of the test captions that occur in no training caption.

    Returns:
        The number of different test words, how many of them are unseen, and how many names contain an unseen word.
    """
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
    """The set of words of a caption."""
    return set(re.findall(r"\w+", caption.lower()))


def rank_queries(bundle: Path, data: Path) -> list[dict[str, Any]]:
    """Rank all test pictures by evenly spaced concept names, not selected by their results, and by free queries."""
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
    """The best pictures of a query, and the rank of the first right one.

    Args:
        retriever: ranks the pictures.
        gallery: all test pictures.
        query: the text, and the hexcode of the concept it names; None for a free query.
        rows: metadata of the test pictures.

    Returns:
        The card's data. It has no matches if the model knows no word of the query, which can happen with learned words.
    """
    text, hexcode = query
    try:
        matches = retriever.rank(text, gallery, top_k=len(gallery))
    except InputError:
        matches = Ranking()
    right = [rows[match.corpus_id]["hexcode"] == hexcode for match in matches]
    shown = [
        {name: rows[match.corpus_id][name] for name in ("file_name", "concept", "style")}
        | {"score": round(match.score, 6), "right": is_right}
        for match, is_right in zip(matches[:SHOWN], right, strict=False)
    ]
    return {"query": text, "hexcode": hexcode, "place": right.index(True) + 1 if any(right) else None, "matches": shown}


def page_parts(results: dict[str, Any], data: Path) -> dict[str, Any]:
    """The page's data that are not in results.json: its tables row by row, pictures and notices."""
    tables = {name: [(title_of(model), model[name]) for model in results["models"]] for name in ("test", "test_names")}
    names = {match["file_name"] for card in results["queries"] for match in card["matches"]}
    pictures = {name: small_picture(data / "test" / name, PIXELS) for name in names}
    notice = (data / "notices" / "NOTICE.md").read_text(encoding="utf-8")
    return {"tables": tables, "pictures": pictures, "notice": notice, "changes": CHANGES}


if __name__ == "__main__":
    run_command(main)
