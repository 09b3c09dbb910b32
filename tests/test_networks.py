"""Networks of other shapes than CAMP's through the same seam: exported, trained, narrowed, saved, scored."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from camp_sdk import Bundle, BundleError, Gallery, Retriever
from camp_sdk.export.bundling.graphs import graphs_of
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network import networks
from camp_sdk.export.network.camp import Tensors
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.losses import Encoded, score_blocks
from camp_sdk.export.training.run import run_training
from camp_sdk.runtime.engines.splitting import SplittingEngine
from camp_sdk.runtime.scoring import PairScorer, logit_matrix
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.engine import TensorRtEngine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tokenizer import open_tokenizer
from tests.helpers.fake_cuda import install, write_plan
from tests.helpers.networks import Mixed, TwoTowers, WithEncoders, exported_in_half, known
from tests.helpers.profiles import SAME, profile_between
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH, save_tiny_checkpoint, tiny_model

NETWORKS = {"two_towers": TwoTowers, "mixed": Mixed, "with_encoders": WithEncoders}
IMAGES = np.random.default_rng(5).standard_normal((9, 6, FEATURE_WIDTH), dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    """The networks of this file, under names by which configurations find them."""
    with known(NETWORKS):
        yield


@pytest.fixture(scope="module", params=NETWORKS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each network, with float16 graphs."""
    return exported_in_half(request.param, tmp_path_factory.mktemp(request.param))


def logits_of(bundle: Path) -> np.ndarray:
    """PyTorch's logits in float64."""
    with Retriever(bundle, "onnxruntime") as retriever:
        model = tiny_model(retriever.bundle.manifest.variant).double()
        tokens = open_tokenizer(retriever.bundle).encode(CAPTIONS)
    with torch.no_grad():
        found = model(torch.from_numpy(IMAGES).double(), torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths))
    return found.numpy()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_scores_are_those_of_pytorch(bundle: Path, backend: str) -> None:
    with Retriever(bundle, backend) as retriever:
        found = retriever.score_matrix(IMAGES, CAPTIONS, logits=True)
        best = retriever.rank(CAPTIONS[1], IMAGES, top_k=len(IMAGES))
        assert [match.corpus_id for match in best] == np.argsort(-found[:, 1], kind="stable").tolist()
    # Float32 sums of a few hundred products, of logits of a few units.
    np.testing.assert_allclose(found, logits_of(bundle), rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_saved_galleries_score_the_same(bundle: Path, tmp_path: Path, precision: str) -> None:
    with Retriever(bundle, "onnxruntime") as retriever:
        images = retriever.encode_images(IMAGES, precision=precision)
        texts = retriever.encode_texts(CAPTIONS)
        exact = retriever.score_matrix(IMAGES, CAPTIONS)
        kept = retriever.score_matrix(images, texts)
        images.save(tmp_path / "images")
        texts.save(tmp_path / "texts")
        mapped = [Gallery.open(tmp_path / side, retriever.bundle) for side in ("images", "texts")]
        np.testing.assert_array_equal(retriever.score_matrix(*mapped), kept)
        if precision == "float32":
            np.testing.assert_array_equal(kept, exact)
        # Half a step of 1/127 of the largest in int8, in scores of at most one.
        np.testing.assert_allclose(kept, exact, rtol=0, atol=2e-2)


def test_masks_are_kept_as_they_are(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", "mixed", False)
    bundle = export_bundle(checkpoint, tmp_path / "bundle").folder
    with Retriever(bundle, "onnxruntime") as retriever:
        for precision in ("float32", "float16", "int8"):
            tensors = retriever.encode_images(IMAGES, precision=precision).encoded.tensors
            assert tensors["image.shown"].dtype == np.bool_
        assert tensors["image.mean.int8"].shape == (9, 1, 16)
        assert tensors["image.mean.scale"].shape == (9, 1, 1)
        assert tensors["image.gram.scale"].shape == (9, 1, 6)


def test_a_network_without_attention_has_nothing_to_explain(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "it.ckpt", "two_towers", False)
    bundle = export_bundle(checkpoint, tmp_path / "bundle").folder
    with Retriever(bundle, "onnxruntime") as retriever, pytest.raises(BundleError, match="explainer"):
        retriever.explain(CAPTIONS[0], IMAGES[0])


@pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")
@pytest.mark.parametrize("graph", ["image", "text", "scorer"])
def test_their_graphs_build(bundle: Path, graph: str, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    here = replace(here_of("tensorrt-rtx"), compute_capability=None)
    record = build_engine(EngineOrder(Bundle(copy), graph, "float16", here))
    read = {spec.name for spec in Bundle(copy).manifest.graphs_in("float16")[graph].inputs}
    assert (record.graph, record.profile.keys()) == (graph, read)


def test_their_tensors_are_uploaded_once(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Retriever(bundle, "onnxruntime") as retriever:
        images, texts = retriever.encode_images(IMAGES).encoded, retriever.encode_texts(CAPTIONS).encoded
        expected = retriever.score_matrix(IMAGES, CAPTIONS, logits=True)
        spec = retriever.bundle.manifest.graphs["scorer"]
        graph = retriever.bundle.file(spec.file)
    fake, _ = install(monkeypatch)
    profile = profile_between(spec, {}, {"I": 4, "T": 4, "N": 32, "R": 8})
    plan = write_plan(tmp_path / "engine.plan", graph, profile)
    with SplittingEngine(TensorRtEngine(plan, "tensorrt"), spec, profile) as engine:
        scorer = PairScorer(engine, spec.inputs)
        np.testing.assert_allclose(logit_matrix(scorer, images, texts), expected, **SAME)
        first = fake.copied["cudaMemcpyHostToDevice"]
        np.testing.assert_allclose(logit_matrix(scorer, images, texts), expected, **SAME)
        read = [images.tensors[one.name] for one in spec.inputs if one.name in images.tensors]
        again = fake.copied["cudaMemcpyHostToDevice"] - first
        assert first - again == sum(array.nbytes for array in read)  # the second time, only texts are copied


@pytest.mark.parametrize("variant", NETWORKS)
def test_blocks_equal_the_whole(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camp_sdk.export.training.losses.BLOCK_TEXTS", 2)
    monkeypatch.setattr("camp_sdk.export.training.losses.BLOCK_IMAGES", 4)
    model = tiny_model(variant).double()
    lengths = torch.tensor([7, 3, 2, 5, 6])
    tokens = torch.randint(1, model.config.vocabulary_size, (5, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image, text = model.encode_images(torch.from_numpy(IMAGES).double()), model.encode_texts(tokens, lengths)
        found, whole = score_blocks(model.scorer, Encoded(image, text, lengths)), model.scorer(image, text)
    torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)  # float64, the same sums in blocks


@pytest.mark.parametrize("variant", NETWORKS)
def test_they_train(variant: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "dev"):
        np.save(tmp_path / f"{split}_ims.npy", rng.standard_normal((8, 3, 6), dtype=np.float32))
        captions = [f"thing {image} seen {k}" for image in range(8) for k in range(5)]
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    config = TrainConfig(
        tmp_path, tmp_path / "run", variant, width=8, word_width=8, epochs=1, batch_size=8, devices="1", min_count=1
    )
    best = run_training(config, tmp_path)
    bundle = export_bundle(best, tmp_path / "bundle")
    assert bundle.manifest.variant == variant


class _Undeclared(TwoTowers):
    axes = {"image.v": "I d"}  # noqa: RUF012  # typed by the parent


class _Missing(TwoTowers):
    axes = {**TwoTowers.axes, "image.other": "I d"}  # noqa: RUF012  # likewise


class _Other(TwoTowers):
    axes = {**TwoTowers.axes, "text.t": "T N"}  # noqa: RUF012  # likewise


class _Swapped(TwoTowers):
    axes = {"image.v": "I d", "text.t": "d T"}  # noqa: RUF012  # likewise

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return {"text.t": super().text_side(T, mask)["text.t"].T}


class _Fixed(TwoTowers):
    axes = {**TwoTowers.axes, "image.v": "I 17"}  # noqa: RUF012  # likewise


class _WordsLast(TwoTowers):
    axes = {**TwoTowers.axes, "text.t": "T d N"}  # noqa: RUF012  # likewise

    def text_side(self, T: Tensor, mask: Tensor) -> Tensors:
        return {"text.t": T.transpose(1, 2)}


@pytest.mark.parametrize(
    ("network", "error"),
    [
        (_Undeclared, r"_Undeclared returns text\.t \(5, 16\), whose axes it does not declare"),
        (_Missing, r"_Missing declares \['image\.other'\], which no side of it returns"),
        (_Other, r"_Other returns text\.t \(5, 16\), and declares it as 'T N', where I = 3, R = 7, T = 5, N = 11"),
        (_Swapped, r"_Swapped returns text\.t \(16, 5\), declared as 'd T': expected I and then R, or T and then N"),
        (_Fixed, r"_Fixed returns image\.v \(3, 16\), and declares it as 'I 17'"),
        (
            _WordsLast,
            r"_WordsLast returns text\.t \(5, 16, 11\), declared as 'T d N': expected the words N as the second",
        ),
    ],
)
def test_a_wrong_declaration_names_tensor_declared_and_found(
    network: type[TwoTowers], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "wrong", network)
    monkeypatch.setattr(network, "forward", lambda self, image, text: torch.zeros(3, 5))
    with pytest.raises(ExportError, match=error):
        graphs_of(tiny_model("wrong"))
