"""Every kind of file that a stranger can give: what writes its mutants, what reads them, and how many there are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from tests.fuzz import containers, mutants, mutations, planted, sources, targets
from tests.fuzz.bases import GALLERIES, HAS_FAISS


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Args:
        name: its name.
        share: of the mutants; kinds that take long have a small one.
        bases: the whole files or folders, one of which each mutant is made of.
        write: writes a mutant into an empty folder.
        target: reads it.
        ways: the ways in which the target reads it, each with its share.
        heavy: whether the target needs PyTorch, which takes seconds to import.
        without_openvino: the way in which only ONNX Runtime reads a graph; None if no graph is opened.
    """

    name: str
    share: int
    bases: tuple[str, ...]
    write: mutants.Writer
    target: targets.Target
    ways: tuple[int, ...] = (1,)
    heavy: bool = False
    without_openvino: int | None = None

    def base(self, seed: int, number: int) -> str:
        """The base of a mutant, by the campaign's seed and the mutant's number."""
        return Random(f"base:{seed}:{self.name}:{number}").choice(self.bases)

    def way(self, number: int) -> int:
        """The way in which a mutant is read."""
        place = number % sum(self.ways)
        return next(way for way in range(len(self.ways)) if place < sum(self.ways[: way + 1]))

    def generate(self, bases: Path, seed: int, number: int, folder: Path) -> None:
        """Write a mutant.

        Args:
            bases: the folder of the whole files.
            seed: of the campaign.
            number: of the mutant, from 0 on.
            folder: an empty folder.
        """
        self.write(bases / self.base(seed, number), Random(f"{seed}:{self.name}:{number}"), folder)


in_folder, one_file, zipped = mutants.in_folder, mutants.one_file, containers.mutated_zip
in_bundle = partial(in_folder, is_bundle=True)
FEATURES, BOTH = ("features",), ("features", "pictures")
IN_FORMAT = {"png": 5, "jpeg": 3, "tiff": 5, "webp": 3, "gif": 2, "bmp": 3, "heic": 2}  # pictures of each
CHECKPOINTS = ("features.ckpt", "pictures.ckpt")
RELEASED = tuple(f"released/{name}.pth.tar" for name in ("cross_attention_new", "gate_fusion_new", "gate_fusion"))
RESULT = "camp-sdk/self-tests/key.json"
DECLARED = ("sources/declared",)
GALLERY = tuple(f"galleries/{name}" for name in GALLERIES)
INDEXES = tuple(f"indexes/{kind}.index" for kind in ("image", "text"))


def _graph(name: str) -> Kind:
    bases = ("pictures",) if name == "vision" else BOTH
    write = in_bundle(containers.mutated_graph, f"{name}.onnx")
    return Kind(f"graph.{name}", 3, bases, write, targets.graph(name), without_openvino=1)


def _picture(name: str) -> Kind:
    mutation = containers.mutated_png if name == "png" else mutations.mutated_bytes
    bases = tuple(f"formats/{number}.{name}" for number in range(IN_FORMAT[name]))
    return Kind(f"picture.{name}", 9, bases, one_file(mutation), targets.picture, (1, 1, 1))


def _source(name: str, mutation: mutants.Mutation, file: str) -> Kind:
    write = in_folder(mutation, file)
    return Kind(f"source.{name}", 6, (f"sources/{name}",), write, sources.imported(name), (1, 1))


def _model(file: str, mutation: mutants.Mutation) -> Kind:
    bases = tuple(f"models/{name}" for name in sources.PUBLISHED)
    return Kind(f"published.{file}", 4, bases, in_folder(mutation, file), sources.published_model, heavy=True)


LIGHT = (
    Kind("manifest", 8, BOTH, in_bundle(mutations.mutated_json, "manifest.json"), targets.whole_bundle, (15, 1)),
    Kind("bundle", 4, BOTH, mutants.bundle_folder, targets.whole_bundle, (7, 1)),
    Kind("tokenizer", 12, FEATURES, in_bundle(mutations.mutated_json, "tokenizer.json"), targets.tokenizer, (15, 1)),
    *map(_graph, ("image", "text", "scorer", "explainer", "vision")),
    Kind("golden", 10, BOTH, in_bundle(zipped, "golden.npz"), targets.golden, (15, 1)),
    Kind("gallery.json", 10, GALLERY, in_folder(mutations.mutated_json, "gallery.json"), targets.gallery),
    Kind("gallery.npy", 10, GALLERY, in_folder(containers.mutated_npy, "*.npy"), targets.gallery),
    Kind("index", 12, INDEXES, one_file(mutations.mutated_bytes), targets.index, (3, 1)),
    Kind("features", 8, ("data",), in_folder(containers.mutated_npy, "train_ims.npy"), targets.features),
    Kind("captions", 5, ("data",), in_folder(mutations.mutated_lines, "train_caps.txt"), targets.features),
    Kind("metadata", 8, ("data",), in_folder(mutations.mutated_lines, "test/metadata.jsonl"), targets.metadata),
    *map(_picture, IN_FORMAT),
    Kind("engine", 8, ("engines",), mutants.engine_record, targets.engine_records),
    Kind("selftest", 5, ("selftest.json",), one_file(mutations.mutated_json, RESULT), targets.self_test_result),
    _source("coco", mutations.mutated_json, "c.json"),
    _source("karpathy", mutations.mutated_json, "k.json"),
    _source("flickr30k", sources.mutated_columns, "t.token"),
    _source("csv", sources.mutated_columns, "t.csv"),
    _source("butd", sources.mutated_columns, "f.tsv"),
    Kind("source.rows", 6, DECLARED, in_folder(mutations.mutated_lines, "train/*.jsonl"), sources.declared, (1, 1)),
    Kind("source.root", 4, DECLARED, in_folder(mutations.mutated_json, "dataset.json"), sources.declared, (1, 1)),
)
MODELS = (
    _model("config.json", mutations.mutated_json),
    _model("tokenizer.json", mutations.mutated_json),
    _model("tokenizer_config.json", mutations.mutated_json),
    _model("preprocessor_config.json", mutations.mutated_json),
    _model("model.safetensors", sources.mutated_safetensors),
)
HEAVY = (
    ("checkpoint", 6, CHECKPOINTS, one_file(zipped, "best.ckpt"), targets.checkpoint),
    ("checkpoint.words", 4, CHECKPOINTS[:1], mutants.checkpoint_words, targets.checkpoint),
    ("released", 6, RELEASED, one_file(zipped), targets.released),
    ("vocabulary.pkl", 8, ("released/vocab.pkl",), one_file(containers.mutated_pickle), targets.vocabulary),
    ("vocabulary.json", 5, ("released/vocab.json",), one_file(mutations.mutated_json), targets.vocabulary),
    ("run", 5, ("run",), mutants.run_record, targets.run_record),
)
ANN = (Kind("index.ann", 4, ("ann",), in_folder(zipped, "*-ann"), targets.index_ann),)
ALL = (
    *LIGHT,
    *(ANN if HAS_FAISS else ()),
    *(Kind(*parts, heavy=True) for parts in HEAVY),
    *(MODELS if sources.HAS_TRANSFORMERS else ()),
)
# Targets that do harm, by which the tests of the campaign see that it sees them. No campaign runs them unasked.
PLANTED = tuple(
    Kind(f"planted.{harm}", 0, ("selftest.json",), one_file(mutations.mutated_bytes), partial(planted.harmful, harm))
    for harm in planted.HARMS
)
KINDS = {kind.name: kind for kind in (*ALL, *PLANTED)}


def counts(total: int, kinds: list[Kind]) -> dict[str, int]:
    """How many mutants each kind has in a campaign: at least one, in proportion to its share.

    Args:
        total: of all kinds.
        kinds: the kinds of the campaign.
    """
    whole = sum(kind.share or 1 for kind in kinds)
    exact = [(kind.share or 1) * total / whole for kind in kinds]
    reached: list[int] = []
    for index in range(len(kinds)):
        reached.append(max(1, round(sum(exact[: index + 1])) - sum(reached)))
    return dict(zip((kind.name for kind in kinds), reached, strict=True))
