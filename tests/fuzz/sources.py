"""Files that others publish: captions, features and models. Their whole files, their mutations, and what reads them."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.mutations import NUMBERS, WORDS, mutated_bytes, mutated_json, mutated_lines

NAMES = ("one.jpg", "two.jpg", "sub/three.jpg")
TEXTS = ("a red circle", "a caf\xe9, left of a star", "two dogs")
PICTURES, OUTPUT = "pictures", "out"
PUBLISHED = ("clip", "siglip")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


# Whole files


def write_sources(folder: Path) -> None:
    """A folder for each form of published captions and features, with its pictures.

    Args:
        folder: where to write them; it is made.
    """
    for name, write in FORMS.items():
        pictures = folder / name / PICTURES
        (pictures / "sub").mkdir(parents=True)
        for number, picture in enumerate(NAMES):
            Image.new("RGB", (6, 5), (number * 90, 40, 200)).save(pictures / picture)
        write(folder / name)


def _coco(folder: Path) -> None:
    images = [{"id": key, "file_name": name, "height": 5} for key, name in enumerate(NAMES)]
    annotations = [{"id": 9 - key, "image_id": key % 3, "caption": TEXTS[key // 3]} for key in range(9)]
    _write(folder / "c.json", json.dumps({"info": {"year": 2017}, "images": images, "annotations": annotations}))


def _karpathy(folder: Path, file: str = "k.json") -> None:
    images = [
        {"filename": Path(name).name, "filepath": str(Path(name).parent), "cocoid": key, "split": split}
        | {"sentences": [{"raw": text, "tokens": text.split()} for text in TEXTS * 2]}
        for key, (name, split) in enumerate(zip(NAMES, ("train", "val", "restval"), strict=True))
    ]
    _write(folder / file, json.dumps({"images": images, "dataset": "coco"}))


def _token(folder: Path) -> None:
    _write(folder / "t.token", "".join(f"{name}#{k}\t{text}\n" for name in NAMES for k, text in enumerate(TEXTS)))


def _table(folder: Path) -> None:
    rows = [f'{name},"{text}",{split}\r\n' for name, split in zip(NAMES, "abc", strict=True) for text in TEXTS]
    _write(folder / "t.csv", "".join(["image,caption,split\r\n", *rows]))


def _features(folder: Path) -> None:
    rng = np.random.default_rng(0)
    lines = []
    for key in range(3):
        numbers = [base64.b64encode(rng.random((3, width), np.float32).tobytes()).decode() for width in (4, 5)]
        lines.append("\t".join([str(key), "640", "480", "3", *numbers]) + "\n")
    _write(folder / "f.tsv", "".join(lines))
    _karpathy(folder, "captions.json")


def _declared(folder: Path) -> None:
    (folder / "train").mkdir()
    rows = [json.dumps({"file_name": name, "captions": list(TEXTS)}) + "\n" for name in NAMES]
    _write(folder / "train/metadata.jsonl", "".join(rows))
    _write(folder / "dataset.json", json.dumps({"version": 1, "root": PICTURES}))


FORMS: dict[str, Callable[[Path], None]] = {
    "coco": _coco,
    "karpathy": _karpathy,
    "flickr30k": _token,
    "csv": _table,
    "butd": _features,
    "declared": _declared,
}


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_models(folder: Path) -> None:
    """Small published models, if `transformers` is installed.

    Args:
        folder: where to write them.
    """
    if HAS_TRANSFORMERS:
        from tests.helpers import published

        published.write_clip(folder / "clip")
        published.write_siglip(folder / "siglip", second=False)


# Mutations


def mutated_columns(text: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a table in which a cell is another one, a strange word or a number, or lines are damaged."""
    if rng.random() < 0.5:
        return mutated_lines(text, rng, other)
    mark = b"\t" if b"\t" in text else b","
    lines = [line.split(mark) for line in text.split(b"\n")]
    row, source = rng.choice(lines), rng.choice(lines)
    at = rng.randrange(len(row))
    strange = [rng.choice(WORDS).encode(), str(rng.choice(NUMBERS)).encode(), b'"', b"NaN", b"x" * 200_000]
    row[at] = rng.choice((*strange, rng.choice(source), mutated_bytes(row[at], rng)))
    return b"\n".join(mark.join(line) for line in lines)


def mutated_safetensors(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a file of weights: with another header, of the old length or the right one, or changed bytes."""
    if rng.random() < 0.4:
        return mutated_bytes(content, rng, b"")
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], rng)
    stated = rng.choice((len(header), len(header), len(header), length, *NUMBERS)) % (1 << 64)
    return stated.to_bytes(8, "little") + header + content[8 + length :]


# What reads them


def imported(kind: str) -> Callable[[Path, Path, int], dict[str, Any]]:
    """Import a source as `camp data` does; what is written must be read, and a failure must leave nothing."""

    def run(bases: Path, folder: Path, way: int) -> dict[str, Any]:
        before = {path.name for path in folder.iterdir()}
        try:
            result = READERS[kind](folder, folder / OUTPUT, bool(way))
        except BaseException as error:
            if left := {path.name for path in folder.iterdir()} - before:
                raise AssertionError(f"{sorted(left)} is left after {error!r}") from error
            raise
        return {"splits": repr(result.splits), "left_out": repr(result.left_out)} | _whole(folder / OUTPUT)

    return run


def _whole(data: Path) -> dict[str, Any]:
    """What training reads of an imported data set."""
    from camp_sdk import CampError, load_split
    from camp_sdk.data import open_rows
    from camp_sdk.runtime.arrays import map_array

    answer: dict[str, Any] = {}
    try:
        if (data / "features.npy").is_file():
            return {
                "features": open_rows(data / "features.npy")[0],
                "boxes": map_array(data / "boxes.npy", "import it"),
            }
        features = [path.name.removesuffix("_ims.npy") for path in data.glob("*_ims.npy")]
        for name in sorted([*features, *(path.parent.name for path in data.glob("*/metadata.jsonl"))]):
            split = load_split(data, name)
            answer |= {f"{name} captions": repr(split.captions), f"{name} of": split.image_of_caption}
    except CampError as error:
        raise AssertionError(f"what was imported cannot be read: {error}") from error
    return answer


def _import_coco(folder: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.coco import coco_splits, read_coco

    root, sources = coco_splits([folder / "c.json"], [folder / PICTURES], [])
    return _import_pictures(lambda reading: read_coco(sources, reading), root, output, skip)


def _import_karpathy(folder: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.karpathy import read_karpathy

    root = folder / PICTURES
    return _import_pictures(lambda reading: read_karpathy(folder / "k.json", root, reading, True), root, output, skip)


def _import_token(folder: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.flickr30k import read_flickr30k

    file = folder / "t.token"
    return _import_pictures(lambda reading: read_flickr30k(file, "test", reading), folder / PICTURES, output, skip)


def _import_table(folder: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.csv_columns import Columns, read_table

    file, columns = folder / "t.csv", Columns("image", ["caption"], "split")
    return _import_pictures(lambda reading: read_table(file, columns, reading), folder / PICTURES, output, skip)


def _import_features(folder: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.butd import Captions, import_butd

    return import_butd([folder / "f.tsv"], output, Captions(folder / "captions.json", True) if skip else Captions())


def _import_pictures(read: Any, root: Path, output: Path, skip: bool) -> Any:
    from camp_sdk.datasets.writer import Target, import_pictures

    return import_pictures(read, [], Target(output, root, skip))


READERS: dict[str, Callable[[Path, Path, bool], Any]] = {
    "coco": _import_coco,
    "karpathy": _import_karpathy,
    "flickr30k": _import_token,
    "csv": _import_table,
    "butd": _import_features,
}


def declared(bases: Path, folder: Path, way: int) -> dict[str, Any]:
    """Read a data set that declares its root; the second way checks it, as `camp data check` does."""
    from camp_sdk import load_split
    from camp_sdk.datasets.check import check_data
    from camp_sdk.datasets.page import write_page

    if way:
        report = check_data(folder)
        write_page(folder / "page.html", report)
        return {"findings": repr({kind: len(found) for kind, found in report.findings.items()})}
    split = load_split(folder, "train")
    return {"pictures": repr([Path(path).name for path in split.images]), "captions": repr(split.captions)}


def published_model(bases: Path, folder: Path, way: int) -> dict[str, Any]:
    """Import a published model, and load the checkpoint."""
    from camp_sdk.export.import_pretrained import import_pretrained
    from camp_sdk.export.network.checkpoint import load_checkpoint

    before = {path.name for path in folder.iterdir()}
    try:
        path = import_pretrained(str(folder), folder / OUTPUT)
    except BaseException as error:
        if left := {path.name for path in folder.iterdir()} - before:
            raise AssertionError(f"{sorted(left)} is left after {error!r}") from error
        raise
    model, origin = load_checkpoint(path)
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    ids = origin.open_tokenizer().encode(list(TEXTS)).ids
    return {
        "weights": digest.hexdigest(),
        "ids": ids,
        "pixels": repr(origin.pixels),
        "towers": repr(origin.model.towers),
    }
