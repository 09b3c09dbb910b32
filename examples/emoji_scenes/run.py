"""Binding, measured on scenes of emoji artwork, in one command: compose, train, export, evaluate, write a page.

    python -m examples.emoji_search.run --output build/emoji
    python -m examples.emoji_scenes.run --pictures build/emoji/data --output build/emoji_scenes

The second command uses the pictures of the first example. It trains `paper` twice: with learned word vectors, and with
a frozen sentence encoder. Each model is measured on scenes of things it has never seen (`test`) and on new pairs of
things it was trained on (`seen`), once with the network and once with its global vectors alone. The measures are
recall, and how often a caption's own picture scores above its twin. The command writes results.json and index.html into
the output folder.

Finished steps are kept: data set, training runs and measurements. To start over, remove the folder.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from camp_sdk import Evaluation, Retriever, Split, evaluate_matrix, load_split
from camp_sdk.combination import Combination, combine
from camp_sdk.commands.eval import evaluation_table
from camp_sdk.evaluation import ENCODING, SCORING, similarity_matrices, weight_of, work_of
from camp_sdk.export.network.vocabulary import LEARNED
from camp_sdk.progress import progress_bars
from camp_sdk.terminal import run_command, show_step, stderr
from examples._shared.pages import small_picture, write_page
from examples._shared.sweep import configs_of, install_line, measured_run, runnable, title_of, write_json
from examples.emoji_scenes.build_data import build

# Options of `camp train`. With two neighbours, twins share a batch, and each is the other's hardest negative.
RECIPE: dict[str, Any] = {
    "width": 128,
    "word_width": 128,
    "vision": "efficientnet-lite0",
    "epochs": 12,
    "batch_size": 64,
    "pair_batch": 32,
    "neighbours": 2,
    "negatives": 3,
    "learning_rate": 1e-3,
    "softmax_weight": 1.0,
    "weight_decay": 0.05,
    "dropout": 0.05,
}
CHECKPOINT = "last.ckpt"  # dev shows other things than train, and hardly indicates which epoch binds best
OF_LEARNED_WORDS = ("word_width",)  # a sentence encoder has its own vectors
OF_SENTENCES = {"precision": "bf16-mixed"}  # the encoder takes most of the time
SENTENCES = "all-minilm-l6-v2"
MODELS = (("paper", LEARNED), ("paper", SENTENCES))
COUNTS = {"train": 6000, "dev": 200, "test": 300, "seen": 300}
MEASURED = ("dev", "test", "seen")
CARDS = 4  # of each split
PIXELS = 192  # width and height of a picture on the page
TEMPLATE = Path(__file__).with_name("scenes_page.html")
TITLES = {"test": "new things", "seen": "known things"}
EXPLAINED = {
    "test": "things from families that the network was not trained on, so it must also recognise them.",
    "seen": "things that the network was trained on, in new pairs.",
}
CHANGES = "Pictures are scaled, and several are put on one background."
VERSIONS = ("camp-sdk", "torch", "lightning", "onnxruntime", "numpy", "pillow")


def main(
    pictures: Annotated[Path, typer.Option(help="Data set of examples/emoji_search.")] = Path("build/emoji/data"),
    output: Annotated[Path, typer.Option(help="Folder for data, runs and results.")] = Path("build/emoji_scenes"),
) -> None:
    """Compose, train, export, evaluate, and write a page."""
    data = output / "data"
    if not data.exists():
        show_step(f"python -m examples.emoji_scenes.build_data --pictures {pictures} --output {data}")
        build(pictures, data, COUNTS)
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
    counts = {name: load_split(data, name) for name in COUNTS}
    results = {
        "recipe": recipe,
        "counts": {name: {"pictures": len(s.images), "captions": len(s.captions)} for name, s in counts.items()},
        "models": models,
        "left_out": [{"words": words, "install": install_line(words)} for words in missing],
        "best": title_of(models[best]),
        "cards": twin_cards(runs[best].output / "bundle", data),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in VERSIONS},
    }
    write_json(output / "results.json", results)
    write_page(output / "index.html", TEMPLATE, results | page_parts(results, data))
    stderr.print(f"wrote {output / 'results.json'} and {output / 'index.html'}", highlight=False, soft_wrap=True)


def measure(bundle: Path, data: Path) -> dict[str, Any]:
    """Recalls of each split as `camp eval` reports them, and twin accuracies of the network and of its vectors."""
    with Retriever(bundle) as retriever:
        measured = {name: measure_split(retriever, load_split(data, name)) for name in MEASURED}
        return {"backend": retriever.backend, **measured}


def measure_split(retriever: Retriever, split: Split) -> dict[str, Any]:
    """Score every pair once, and compute both recalls and twin accuracies from the scores."""
    with progress_bars(work_of(split)) as advance:
        gallery = retriever.encode_images(split.images, on_progress=lambda done: advance(ENCODING, done))
        logits, vectors = similarity_matrices(retriever, gallery, split.captions, lambda done: advance(SCORING, done))
    assert vectors is not None  # the recipe trains them
    owner = split.image_of_caption
    network, beside = evaluate_matrix(logits, owner), evaluate_matrix(vectors, owner)
    members, weight = {retriever.bundle.manifest.variant: network}, weight_of(retriever)
    twins = {"network": twin_accuracy(logits, owner), "global_vectors": twin_accuracy(vectors, owner)}
    both = None
    if weight is not None:
        combined = combine(logits, vectors, weight)
        both = Combination(weight, evaluate_matrix(combined, owner))
        twins["combination"] = twin_accuracy(combined, owner)
    counts = (len(split.images), len(split.captions), 1)
    result = Evaluation(network, beside, *counts, members=members, combination=both)
    Console().print(evaluation_table(result, f"{split.name}: {result.protocol}"))
    return result.as_dict() | {"twin_accuracy": twins}


def twin_accuracy(similarity: NDArray[np.float32], image_of_caption: NDArray[np.int64]) -> float:
    """Percentage of captions whose own picture scores above its twin. A tie counts as wrong; a guess reaches 50.

    Args:
        similarity: scores, float32 [I, T]; pictures 2k and 2k + 1 are twins.
        image_of_caption: the index of each caption's own picture, int64 [T].
    """
    texts = np.flatnonzero((image_of_caption ^ 1) < len(similarity))  # with an odd count, the last picture has no twin
    own = image_of_caption[texts]
    return float(100 * (similarity[own, texts] > similarity[own ^ 1, texts]).mean())


def twin_cards(bundle: Path, data: Path) -> list[dict[str, Any]]:
    """Evenly spaced pairs of twins, not selected by their results, with a caption of the first twin and both scores."""
    with Retriever(bundle) as retriever:
        return [card for name in TITLES for card in split_cards(retriever, load_split(data, name))]


def split_cards(retriever: Retriever, split: Split) -> list[dict[str, Any]]:
    """The cards of one split: logits and the vectors' dot products for a caption's own picture and its twin."""
    cards = []
    for pair in np.linspace(0, len(split.images) // 2 - 1, CARDS).astype(int):
        twins = [Path(split.images[2 * pair + side]) for side in range(2)]
        caption = split.captions[int(np.argmax(split.image_of_caption == 2 * pair))]
        logits, vectors = similarity_matrices(retriever, retriever.encode_images(twins), [caption], lambda done: None)
        assert vectors is not None  # the recipe trains them
        scores = {"network": logits[:, 0].tolist(), "global_vectors": vectors[:, 0].tolist()}
        cards.append({"split": split.name, "caption": caption, "file_names": [path.name for path in twins], **scores})
    return cards


def page_parts(results: dict[str, Any], data: Path) -> dict[str, Any]:
    """The page's data that are not in results.json: its tables row by row, its texts, pictures and notices."""
    tables = {split: [(title_of(model), model[split]) for model in results["models"]] for split in TITLES}
    pictures: dict[str, dict[str, str]] = {split: {} for split in TITLES}
    for card in results["cards"]:
        for name in card["file_names"]:
            pictures[card["split"]][name] = small_picture(data / card["split"] / name, PIXELS)
    notice = (data / "notices" / "NOTICE.md").read_text(encoding="utf-8")
    words = {"titles": TITLES, "explained": EXPLAINED, "changes": CHANGES}
    return {"tables": tables, "pictures": pictures, "notice": notice, **words}


if __name__ == "__main__":
    run_command(main)
