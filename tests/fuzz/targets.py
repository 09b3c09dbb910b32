"""What reads each kind of file, as a user's program would, and answers with text and numbers to compare.

Every target takes the folder of the bases, the mutant's folder and the way to read it, a number from 0 on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from camp_sdk import Bundle, Retriever
from tests.fuzz.bases import QUERIES, some_features, some_pixels

Answer = dict[str, Any]  # numbers as arrays, anything else as text
Target = Callable[[Path, Path, int], Answer]
ENGINES = ("onnxruntime", "openvino")
ORIN = ("tensorrt", "10.3.0", "8.7", "CUDA 12.6")  # the machine that the engines of the bases are for
SIZE = 24  # of pictures that are read, in pixels


@functools.cache
def whole_retriever(bases: Path) -> Retriever:
    """A retriever of the whole bundle, for the files that need one."""
    return Retriever(bases / "features", "onnxruntime", threads=1)


def whole_bundle(bases: Path, folder: Path, way: int) -> Answer:
    """Rank and explain with a bundle; the way is the engine."""
    with Retriever(folder, ENGINES[way], threads=1) as retriever:
        images: Any = [some_pixels()] * 2 if retriever.bundle.manifest.pixels else some_features()
        gallery = retriever.encode_images(images)
        ranking = retriever.rank(QUERIES[0], gallery)
        answer = {"scores": retriever.score_matrix(gallery, QUERIES), "words": repr(ranking.unknown_words)}
        answer["order"] = repr([match.corpus_id for match in ranking])
        if "explainer" in retriever.bundle.manifest.graphs:
            explanation = retriever.explain(QUERIES[0], gallery.select([0]))
            answer |= {"to_words": explanation.to_words, "to_regions": explanation.to_regions}
        return answer


def tokenizer(bases: Path, folder: Path, way: int) -> Answer:
    """Encode texts with a bundle's tokenizer; the second way is with its graphs, too."""
    from camp_sdk.runtime.tokenizer import open_tokenizer

    opened = open_tokenizer(Bundle(folder))
    opened.check_queries(QUERIES)
    tokens = opened.encode([*QUERIES, "Caf\xe9 e\u0301 \u202e\U0001f600 <unk> </s>", "red " * 2000, "x" * 3000])
    answer = {"ids": tokens.ids, "words": repr(tokens.words), "shown": repr([tokens.shown(i) for i in range(5)])}
    return answer | (whole_bundle(bases, folder, 0) if way else {})


def graph(name: str) -> Target:
    """Open one graph with both engines, or in way 1 without OpenVINO, and run it on the whole bundle's inputs."""

    def run(bases: Path, folder: Path, way: int) -> Answer:
        from camp_sdk.runtime.backends import open_engine

        bundle, answer = Bundle(folder), {}
        feeds = feeds_of(bases, "pictures" if bundle.manifest.pixels else "features", name)
        with ExitStack() as stack:
            errors = []
            for backend in ENGINES[:1] if way else ENGINES:
                try:
                    engine = stack.enter_context(open_engine(bundle, name, backend, threads=1))
                    found = engine.run(feeds)
                except Exception as error:  # the other engine reads the file all the same
                    errors.append(error)
                else:
                    answer |= {f"{backend} {key}": value for key, value in found.items()}
        if errors:
            raise min(errors, key=_is_expected)
        if not all(np.isfinite(value).all() for value in answer.values()):  # a retriever must not let these through
            return whole_bundle(bases, folder, 0)
        return answer

    return run


def _is_expected(error: Exception) -> bool:
    from camp_sdk import CampError

    return isinstance(error, (CampError, OSError))


@functools.cache
def feeds_of(bases: Path, bundle: str, name: str) -> dict[str, Any]:
    """The inputs of a graph, as the other graphs of the whole bundle make them."""
    from camp_sdk.runtime.backends import open_engine
    from camp_sdk.runtime.golden import read_golden

    whole = Bundle(bases / bundle)
    golden = read_golden(whole)
    made: dict[str, Any] = {"tokens": golden.tokens[:2], "lengths": golden.lengths[:2], "features": golden.features[:2]}
    made["tokens"] = made["tokens"][:, : made["lengths"].max()]
    if golden.pixels is not None:
        made["pixels"] = golden.pixels[:2]
    for maker in ("image", "text"):
        spec = whole.manifest.graphs[maker]
        with open_engine(whole, maker, "onnxruntime", threads=1) as engine:
            made |= engine.run({own.name: made[own.name] for own in spec.inputs})
    return {spec.name: made[spec.name] for spec in whole.manifest.graphs[name].inputs}


def golden(bases: Path, folder: Path, way: int) -> Answer:
    """Read the golden examples of a bundle, and check its caption and picture; the second way runs the self-test."""
    from camp_sdk.diagnosis import check_picture
    from camp_sdk.runtime.golden import read_golden
    from camp_sdk.runtime.selftest import check_caption, self_test

    bundle = Bundle(folder)
    examples = read_golden(bundle)
    answer = {name: value for name, value in asdict(examples).items() if value is not None}
    check_caption(bundle, examples)
    check_picture(bundle, examples)
    if way:
        answer["passed"] = repr(self_test(bundle, "onnxruntime", "float32").passed)
    return answer


def gallery(bases: Path, folder: Path, way: int) -> Answer:
    """Open a gallery and rank with it."""
    retriever = whole_retriever(bases)
    opened = retriever.open_gallery(folder)
    query: Any = some_features()[0] if opened.kind == "text" else QUERIES[0]
    ranking = retriever.rank(query, opened)
    short = retriever.rank(query, opened, top_k=1, shortlist=2)
    return {
        "scores": np.array([match.score for match in ranking]),
        "order": repr([(match.corpus_id, match.document) for match in (*ranking, *short)]),
    }


def index(bases: Path, folder: Path, way: int) -> Answer:
    """Open an index, rank with it, and read all of it; the second way changes it first."""
    retriever = whole_retriever(bases)
    (path,) = folder.glob("*.index")
    with retriever.open_index(path) as opened:
        image = some_features()[0]
        if way:
            opened.remove(["0"])
            opened.update("1", {"album": "b"})
            opened.add([image] if opened.kind == "image" else QUERIES[:1], ["new"], [{"album": "a"}])
            opened.compact()
        query: Any = image if opened.kind == "text" else QUERIES[0]
        ranking = retriever.rank(query, opened)
        short = retriever.rank(query, opened, top_k=1, shortlist=2, where={"album": "a"})
        similar = retriever.rank(image, opened, by="image") if opened.kind == "image" else []
        return {
            "scores": np.array([match.score for match in ranking]),
            "order": repr([(match.corpus_id, match.key, match.metadata) for match in (*ranking, *short, *similar)]),
            "items": repr([*opened, opened.info().items, opened.get("1"), *opened.where({"year": {"gte": 2}})]),
        }


def index_ann(bases: Path, folder: Path, way: int) -> Answer:
    """Choose a shortlist with the approximate search of an index, among all of its items."""
    from camp_sdk.index import approximate

    approximate.FEW_ITEMS = 0
    (path,) = folder.glob("*.index")
    with whole_retriever(bases).open_index(path, ann=True) as opened:
        ranking = whole_retriever(bases).rank(QUERIES[0], opened, 5, 20)
    return {"order": repr([(match.key, match.score) for match in ranking])}


def features(bases: Path, folder: Path, way: int) -> Answer:
    """Read a data set of features both ways, and encode some of them."""
    from camp_sdk.data import load_split, open_rows

    split = load_split(folder, "train")
    rows, names = open_rows(folder / "train_ims.npy")
    encoded: Any = whole_retriever(bases).encode_images(rows[:2])
    logits = whole_retriever(bases).score_matrix(encoded, QUERIES, logits=True)
    return {"captions": repr(split.captions), "names": repr(names), "logits": logits, "of": split.image_of_caption}


def metadata(bases: Path, folder: Path, way: int) -> Answer:
    """Read a data set of pictures."""
    from camp_sdk.data import load_split

    split = load_split(folder, "test")
    return {"pictures": repr([Path(path).name for path in split.images]), "captions": repr(split.captions)}


def checkpoint(bases: Path, folder: Path, way: int) -> Answer:
    """Load a checkpoint of our own, and open its tokenizer."""
    from camp_sdk.export.network.checkpoint import load_checkpoint

    (path,) = folder.iterdir()
    model, origin = load_checkpoint(path)
    tokens = origin.open_tokenizer().encode(QUERIES)
    return {"weights": _digest(model.state_dict()), "ids": tokens.ids, "examples": str(origin.example_batch().shape)}


def _digest(weights: Any) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()


def released(bases: Path, folder: Path, way: int) -> Answer:
    """Read a checkpoint of the released code."""
    from camp_sdk.export.released.files import read_checkpoint

    (path,) = folder.iterdir()
    found = read_checkpoint(path)
    return {"weights": _digest(found.weights), "config": repr(found.config), "training": repr(found.training)}


def vocabulary(bases: Path, folder: Path, way: int) -> Answer:
    """Read a vocabulary of the released code, and make a tokenizer of it."""
    from camp_sdk.export.released.files import read_vocabulary
    from camp_sdk.export.released.nltk_words import nltk_tokenizer
    from camp_sdk.runtime.tokenizer import Tokenizer

    (path,) = folder.iterdir()
    words = read_vocabulary(path)
    return {"words": repr(words), "ids": Tokenizer(nltk_tokenizer(words).to_str()).encode(QUERIES).ids}


def picture(bases: Path, folder: Path, way: int) -> Answer:
    """Read a picture, from its path or from memory; the way is how it is fitted."""
    from camp_sdk.pictures import read_picture
    from camp_sdk.runtime.manifest import FITS

    (path,) = folder.iterdir()
    given: Any = path.read_bytes() if way else path
    return {"pixels": read_picture(given, SIZE, SIZE, path.name, FITS[way])}


def engine_records(bases: Path, folder: Path, way: int) -> Answer:
    """Read the records of a bundle's engines, and look for one that fits; no engine is opened."""
    from camp_sdk.runtime.errors import BackendError
    from camp_sdk.runtime.tensorrt.plans import Here, engine_files, find_plan, read_records

    records, broken = read_records(folder)
    if broken and len(max(broken)) > 2000:
        raise ValueError("a long line")
    answer = {"records": repr([asdict(record) for _, record in records]), "broken": repr(len(broken))}
    try:
        found = find_plan(Bundle(folder), "image", "float32", Here(*ORIN))[0].sha256
    except BackendError as error:
        found = type(error).__name__
    return answer | {"found": found, "files": repr(len(engine_files(folder)))}


def run_record(bases: Path, folder: Path, way: int) -> Answer:
    """Check that a training run can continue."""
    from camp_sdk.export.training.config import TrainConfig
    from camp_sdk.export.training.resume import check_output

    check_output(TrainConfig(bases / "data", folder, resume=True), _asked(bases))
    return {"continues": "yes"}


@functools.cache
def _asked(bases: Path) -> Any:
    import json

    from camp_sdk.export.training.resume import RECORD

    return json.loads((bases / "run" / RECORD).read_text(encoding="utf-8"))


def self_test_result(bases: Path, folder: Path, way: int) -> Answer:
    """Recall the result of a self-test from the cache folder, which is the mutant's."""
    from camp_sdk.runtime.selftest import recall

    test = recall("key")
    return {"result": "none" if test is None else repr(test) + repr(test.passed)}
