"""Released checkpoints become bundles with the released code's scores; hostile or broken files are refused.

tests/released holds four small checkpoints of that code with their vocabulary, six captions, and what it made of them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from camp_sdk import BundleError, InputError, Retriever
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.released import RELEASED
from camp_sdk.export.released.files import read_checkpoint, read_vocabulary

ROOT = Path(__file__).parents[1]
FOLDER = Path(__file__).parent / "released"
VOCAB = FOLDER / "vocab.pkl"
CAPTIONS: list[str] = json.loads((FOLDER / "captions.json").read_text())

every_variant = pytest.mark.parametrize("variant", RELEASED)


def recorded(name: str) -> NDArray[Any]:
    with np.load(FOLDER / "expected.npz") as arrays:
        return np.asarray(arrays[name])


def released(variant: str = "gate_fusion_new") -> dict[str, Any]:
    """A recorded checkpoint, loaded."""
    with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):  # type: ignore[list-item]  # a pair
        loaded: dict[str, Any] = torch.load(FOLDER / f"{variant}.pth.tar", weights_only=True)
    return loaded


@pytest.fixture(scope="module", params=list(RELEASED))
def retriever(request: pytest.FixtureRequest, released_bundle: Callable[[str], Path]) -> Iterator[Retriever]:
    with Retriever(released_bundle(request.param), "onnxruntime") as opened:
        yield opened


# The same scores


def test_from_features_and_captions_to_the_scores_of_the_released_code(retriever: Retriever) -> None:
    expected = recorded(f"scores_{retriever.bundle.manifest.variant}")
    found = retriever.score_matrix(recorded("images"), CAPTIONS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("padded", [49, 50, 57])
def test_scores_do_not_depend_on_the_padding(retriever: Retriever, padded: int) -> None:
    tokens = np.zeros((len(CAPTIONS), padded), np.int64)
    tokens[:, :49] = recorded("tokens")
    sides = retriever._engines["image"].run({"features": recorded("images")})
    sides |= retriever._engines["text"].run({"tokens": tokens, "lengths": recorded("lengths")})
    inputs = [spec.name for spec in retriever.bundle.manifest.graphs["scorer"].inputs]
    logits = retriever._engines["scorer"].run({name: sides[name] for name in inputs})["logits"]
    expected = recorded(f"scores_{retriever.bundle.manifest.variant}")
    np.testing.assert_allclose(retriever.model.activate(logits), expected, rtol=0, atol=1e-5)


def test_a_pair_alone_scores_what_it_scores_among_others(retriever: Retriever) -> None:
    images, expected = recorded("images"), recorded(f"scores_{retriever.bundle.manifest.variant}")
    found = retriever.score([(images[i], caption) for i in range(4) for caption in CAPTIONS])
    np.testing.assert_allclose(found.reshape(4, 6), expected, rtol=0, atol=1e-5)


def test_captions_become_the_recorded_tokens(retriever: Retriever) -> None:
    tokens = retriever._tokenizer.encode(CAPTIONS)
    np.testing.assert_array_equal(tokens.lengths, recorded("lengths"))
    np.testing.assert_array_equal(tokens.ids, recorded("tokens"))


def test_rankings_are_those_of_the_scores(retriever: Retriever) -> None:
    expected = recorded(f"scores_{retriever.bundle.manifest.variant}")
    gallery = retriever.encode_images(recorded("images"))
    for text, caption in enumerate(CAPTIONS):
        matches = retriever.rank(caption, gallery, top_k=4)
        assert [match.corpus_id for match in matches] == np.argsort(-expected[:, text]).tolist()


def test_a_saved_gallery_scores_the_same(retriever: Retriever, tmp_path: Path) -> None:
    gallery = retriever.encode_images(recorded("images"))
    gallery.save(tmp_path / "gallery")
    opened = retriever.open_gallery(tmp_path / "gallery")
    fresh, saved = (retriever.score_matrix(images, CAPTIONS) for images in (gallery, opened))
    np.testing.assert_array_equal(fresh, saved)


def test_the_explanation_holds_distributions_and_gates_where_there_are_any(retriever: Retriever) -> None:
    why = retriever.explain(CAPTIONS[3], recorded("images")[0])
    np.testing.assert_allclose(why.to_words.sum(0), 1, rtol=0, atol=1e-5)  # float32 sums of nine weights
    np.testing.assert_allclose(why.to_regions.sum(1), 1, rtol=0, atol=1e-5)
    gated = retriever.bundle.manifest.variant.startswith("gate")
    assert (why.region_gates is not None, why.word_gates is not None) == (gated, gated)
    if why.region_gates is not None:
        assert ((why.region_gates >= 0) & (why.region_gates <= 1)).all()


def test_cosines_stay_as_they_are_and_logits_get_a_sigmoid(retriever: Retriever) -> None:
    activation = "sigmoid" if retriever.bundle.manifest.variant.startswith("gate") else "none"
    assert retriever.bundle.manifest.activation == activation
    assert retriever.bundle.manifest.training["epoch"] == 3


def test_there_are_no_global_vectors(retriever: Retriever) -> None:
    names = {spec.name for side in ("image", "text") for spec in retriever.bundle.manifest.graphs[side].outputs}
    assert not {name for name in names if name.endswith(".global")}


# The graphs


def graph_of(retriever: Retriever, name: str) -> Any:
    return onnx.load(retriever.bundle.folder / f"{name}.onnx").graph


def test_gram_matrices_are_as_wide_as_there_are_regions(retriever: Retriever) -> None:
    shapes = {spec.name: spec.shape for spec in retriever.bundle.manifest.image_tensors}
    square = {name for name, shape in shapes.items() if shape == ("I", "R", "R")}
    expected = {"cross_attention_new": {"image.G"}, "gate_fusion_new": {"image.G", "image.VV"}}
    assert square == expected.get(retriever.bundle.manifest.variant, set())


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_narrower_galleries_open_as_they_were_saved(retriever: Retriever, precision: str, tmp_path: Path) -> None:
    """Those of gram matrices, too, whose two axes are of regions."""
    features = np.random.default_rng(6).standard_normal((4, 5, 40), dtype=np.float32)
    gallery = retriever.encode_images(features, precision=precision)
    gallery.save(tmp_path / "gallery")
    opened = retriever.open_gallery(tmp_path / "gallery")
    texts = ["a dog runs", "two men"]
    np.testing.assert_array_equal(retriever.score_matrix(opened, texts), retriever.score_matrix(gallery, texts))


def test_nothing_made_of_weights_alone_is_made_at_run_time(retriever: Retriever) -> None:
    for name in ("image", "text", "scorer"):
        graph = graph_of(retriever, name)
        fixed = {value.name for value in graph.initializer}
        assert not [node.op_type for node in graph.node if node.input and fixed.issuperset(node.input)]


@pytest.mark.parametrize(("images", "regions", "lengths"), [(3, 1, [4, 9]), (1, 36, [2]), (5, 11, [49, 3, 7])])
@torch.no_grad()
def test_onnx_equals_torch_at_other_shapes(retriever: Retriever, images: int, regions: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(5)
    model, _ = load_checkpoint(
        retriever.bundle.folder.with_name(f"run-{retriever.bundle.manifest.variant}") / "best.ckpt"
    )
    features = rng.standard_normal((images, regions, 40), dtype=np.float32)
    tokens = np.zeros((len(lengths), max(lengths)), np.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = rng.integers(1, 52, length)
    sides = retriever._engines["image"].run({"features": features})
    sides |= retriever._engines["text"].run({"tokens": tokens, "lengths": np.array(lengths)})
    inputs = [spec.name for spec in retriever.bundle.manifest.graphs["scorer"].inputs]
    logits = retriever._engines["scorer"].run({name: sides[name] for name in inputs})["logits"]
    expected = model(torch.from_numpy(features), torch.from_numpy(tokens), torch.tensor(lengths))
    # Float32 sums of 24 terms in another order; attention logits of these weights reach ten.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)


# Reading checkpoints


@every_variant
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_prefix_and_file_format_do_not_matter(tmp_path: Path, variant: str, legacy: bool, prefix: str) -> None:
    raw = released(variant)
    bare = [{name.removeprefix("module."): t for name, t in state.items()} for state in raw["model"]]
    raw["model"] = [{prefix + name: tensor for name, tensor in state.items()} for state in bare]
    torch.save(raw, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=not legacy)
    found, expected = read_checkpoint(tmp_path / "c.pth.tar"), read_checkpoint(FOLDER / f"{variant}.pth.tar")
    assert (found.config, found.training) == (expected.config, expected.training)
    assert found.weights.keys() == expected.weights.keys()
    assert all(torch.equal(found.weights[name], expected.weights[name]) for name in found.weights)


@every_variant
def test_a_checkpoint_without_options_is_known_by_its_tensors(tmp_path: Path, variant: str) -> None:
    raw = released(variant)
    del raw["opt"]
    torch.save(raw, tmp_path / "c.pth.tar")
    assert read_checkpoint(tmp_path / "c.pth.tar").config == read_checkpoint(FOLDER / f"{variant}.pth.tar").config


def refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    """A changed checkpoint is refused with that message, and nothing is written."""
    raw = released()
    change(raw)
    torch.save(raw, tmp_path / "c.pth.tar")
    with pytest.raises(BundleError, match=message):
        import_checkpoint(tmp_path / "c.pth.tar", VOCAB, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_missing_surplus_or_misshapen_tensor_is_listed(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        image, text, scorer = raw["model"]
        del image["module.fc.bias"]
        text["module.rnn.weight_ih_l1"] = torch.zeros(2)
        scorer["module.fc_1.0.weight"] = torch.zeros(24, 24)
        scorer["module.fc_out.3.bias"] = torch.full((1,), torch.nan)

    faults = [
        r"image fc\.bias is missing",
        r"scorer fc_1\.0\.weight is \(24, 24\), expected \(24, 48\)",
        r"scorer fc_out\.3\.bias holds data other than finite numbers",
        r"text rnn\.weight_ih_l1 is not of this model",
    ]
    refused(tmp_path, change, "does not hold the weights of gate_fusion_new: " + "; ".join(faults))


def test_a_name_with_and_without_prefix_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path,
        lambda raw: raw["model"][0].update({"fc.bias": torch.zeros(24)}),
        r"image fc\.bias twice, with and without",
    )


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.eye(24).to_sparse(), id="sparse"),
        pytest.param(torch.zeros(1).expand(10**6, 10**6), id="spread"),
        pytest.param(torch.zeros(24, 40, device="meta"), id="meta"),
    ],
)
def test_what_is_no_plain_tensor_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    refused(tmp_path, lambda raw: raw["model"][0].update({"module.fc.weight": tensor}), "expected model|cannot be read")


def test_numbers_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    huge = torch.full((24,), 1e300, dtype=torch.float64)
    refused(tmp_path, lambda raw: raw["model"][0].update({"module.fc.bias": huge}), "holds data other than finite")


def test_an_empty_embedding_is_misshapen(tmp_path: Path) -> None:
    empty = torch.zeros(0, 0)
    refused(tmp_path, lambda raw: raw["model"][1].update({"module.embed.weight": empty}), r"embed\.weight is \(0, 0\)")


def test_a_missing_matrix_does_not_hide_the_rest(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        del raw["model"][0]["module.fc.weight"], raw["model"][1]["module.embed.weight"]

    refused(tmp_path, change, r"gate_fusion_new: image fc\.weight is missing; text embed\.weight is missing$")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda raw: raw["opt"].update(measure="cosine"), "has the scorer 'cosine': expected one of", id="other"
        ),
        pytest.param(lambda raw: raw["opt"].update(measure="gate_fusion"), "reduce_layer_1.* is missing", id="wrong"),
        pytest.param(lambda raw: raw["opt"].update(measure=["x"]), r"has the scorer \['x'\]", id="no text"),
        pytest.param(lambda raw: raw["opt"].update(no_imgnorm=False), "no_imgnorm = False: a different net", id="norm"),
        pytest.param(lambda raw: raw["opt"].update(no_imgnorm=torch.ones(2)), "a different network", id="norms"),
        pytest.param(lambda raw: raw["opt"].update(bi_gru=False), "bi_gru = False: a different network", id="one way"),
        pytest.param(lambda raw: raw["model"].pop(), r"expected model = \[image, text, scorer\]", id="two parts"),
        pytest.param(lambda raw: raw.pop("model"), r"expected model = \[image, text, scorer\]", id="no model"),
        pytest.param(lambda raw: raw["model"][2].update(x=1), r"expected model = \[image", id="no tensor"),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    refused(tmp_path, change, message)


@pytest.mark.parametrize("kept", [0, 10, 1000, 40_000])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: int) -> None:
    (tmp_path / "c.pth.tar").write_bytes((FOLDER / "gate_fusion_new.pth.tar").read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"c\.pth\.tar cannot be read as a checkpoint: .*expected a whole file"):
        read_checkpoint(tmp_path / "c.pth.tar")


def test_a_checkpoint_that_is_no_dict_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "c.pth.tar")
    with pytest.raises(BundleError, match="holds a list: expected a dict"):
        read_checkpoint(tmp_path / "c.pth.tar")


# Nothing is executed


class Call:
    """Pickles as a call of a function, which `pickle.load` would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def hostile(folder: Path) -> dict[str, tuple[Any, str]]:
    """Objects whose pickles would leave a file `owned` behind, and the name that must be refused."""
    owned = folder / "owned"
    touch = f"open({str(owned)!r}, 'w').close()"
    system = f"{os.name if os.name == 'nt' else 'posix'}.system"
    return {
        "os.system": (Call(os.system, f"touch {owned}"), system),
        "eval": (Call(eval, touch), "builtins.eval"),
        "exec": (Call(exec, touch), "builtins.exec"),
        "nested": ({"word2idx": {"<pad>": [Call(eval, touch)]}}, "builtins.eval"),
        "getattr": (Call(getattr, Call(__import__, "os"), "system"), "builtins.getattr"),
    }


hostile_names = pytest.mark.parametrize("name", ["os.system", "eval", "exec", "nested", "getattr"])


@hostile_names
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_vocabulary_is_refused_and_not_executed(tmp_path: Path, name: str, protocol: int) -> None:
    payload, asked = hostile(tmp_path)[name]
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(payload, protocol))
    old = {"builtins": "__builtin__"} if protocol < 3 else {}
    module, function = asked.rsplit(".", 1)
    with pytest.raises(
        BundleError, match=f"asks for {module}.{function}|asks for {old.get(module, module)}.{function}"
    ):
        read_vocabulary(tmp_path / "vocab.pkl")
    assert not (tmp_path / "owned").exists()


@hostile_names
@pytest.mark.parametrize("where", ["opt", "model", "epoch"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_hostile_checkpoint_is_refused_and_not_executed(tmp_path: Path, name: str, where: str, legacy: bool) -> None:
    payload, asked = hostile(tmp_path)[name]
    raw = released() | {where: payload}
    torch.save(raw, tmp_path / "c.pth.tar", _use_new_zipfile_serialization=not legacy)
    function = asked.rsplit(".", 1)[1]
    with pytest.raises(BundleError, match=rf"it asks for (\S+\.)?{function}, which is not data: refused"):
        read_checkpoint(tmp_path / "c.pth.tar")
    assert not (tmp_path / "owned").exists()


# Vocabularies


def vocabulary() -> dict[str, int]:
    return read_vocabulary(VOCAB)


def pickled(module: str, attributes: dict[str, Any], protocol: int) -> bytes:
    """As a program pickles its own class `Vocabulary` of that module."""
    made = type("Vocabulary", (), {"__module__": module})
    stand_in = types.ModuleType(module)
    stand_in.Vocabulary = made  # type: ignore[attr-defined]  # as the program's own module would have
    instance = made()
    vars(instance).update(attributes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module, stand_in)
        return pickle.dumps(instance, protocol)


def attributes_of(words: dict[str, int]) -> dict[str, Any]:
    return {"word2idx": words, "idx2word": {index: word for word, index in words.items()}, "idx": len(words)}


@pytest.mark.parametrize("module", ["vocab", "__main__"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickled_vocabulary_of_either_module(tmp_path: Path, module: str, protocol: int) -> None:
    (tmp_path / "v.pkl").write_bytes(pickled(module, attributes_of(vocabulary()), protocol))
    assert read_vocabulary(tmp_path / "v.pkl") == vocabulary()


def test_a_vocabulary_as_json(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps(attributes_of(vocabulary())))
    assert read_vocabulary(tmp_path / "v.json") == vocabulary()


def test_a_plain_pickled_dict_will_do(tmp_path: Path) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(attributes_of(vocabulary())))
    assert read_vocabulary(tmp_path / "v.pkl") == vocabulary()


SMALL = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "dog": 4}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        pytest.param({"word2idx": SMALL | {"cat": 4}}, "not numbered 0 to 5", id="an index twice"),
        pytest.param({"word2idx": SMALL | {"cat": 7}}, "not numbered 0 to 5", id="a gap"),
        pytest.param({"word2idx": {"dog": 0}}, "expected <pad>, <start>, <end>, <unk> at 0 to 3", id="no markers"),
        pytest.param({"word2idx": dict(list(SMALL.items())[:4])}, "holds no words besides", id="markers alone"),
        pytest.param({"word2idx": {"dog": "0"}}, "expected word2idx", id="an index is text"),
        pytest.param({"word2idx": {"dog": True}}, "NEWTRUE", id="an index is a truth value"),
        pytest.param({"word2idx": [1, 2]}, "expected word2idx", id="a list"),
        pytest.param({"words": SMALL}, "expected word2idx", id="another key"),
        pytest.param({"word2idx": SMALL, "idx2word": {0: "dog"}}, "not the reverse", id="another reverse"),
        pytest.param({"word2idx": SMALL, "idx": 9}, "idx is 9, expected the number of words, 5", id="another count"),
        pytest.param([1, 2], "expected word2idx", id="no vocabulary"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(tmp_path: Path, attributes: Any, message: str) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(attributes))
    with pytest.raises(BundleError, match=message):
        read_vocabulary(tmp_path / "v.pkl")


DEEP = b"\x80\x02}U\x08word2idx}(" + b"(" * 3_000_000 + b"K\x01" + b"t" * 3_000_000 + b"K\x01us."
ODD = {
    "a tuple nested too deep": (DEEP, "holds a tuple of more than 1048576 values, or nested over 64"),
    "a set": (pickle.dumps({"word2idx": SMALL, "x": {1}}, 4), "holds data other than .*SET"),
    "a float": (pickle.dumps({"word2idx": SMALL, "x": 1.5}), "holds data other than .*FLOAT"),
    "a tuple": (pickle.dumps({"word2idx": SMALL, "x": (1, 2)}), "holds data other than .*TUPLE"),
    "none": (pickle.dumps({"word2idx": SMALL, "x": None}), "holds data other than .*NONE"),
    "a huge idx": (
        pickle.dumps({"word2idx": SMALL, "idx": 1 << 600}),
        "it holds a whole number of 601 bits, over 64",
    ),
    "a huge key": (pickle.dumps({"word2idx": SMALL, "idx2word": {1 << 600: "dog"}}), "number of 601 bits, over 64"),
    "half a character": (pickle.dumps({"word2idx": SMALL | {"\ud800": 5}}), "words .in valid Unicode."),
    "half a character in JSON": (rb'{"word2idx": {"\ud800": 0}}', "words .in valid Unicode."),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_things_in_a_vocabulary_are_refused(tmp_path: Path, name: str) -> None:
    content, message = ODD[name]
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_vocabulary(tmp_path / "v.pkl")


def test_a_pickle_that_changes_the_class_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x02cvocab\nVocabulary\nN}X\x07\x00\x00\x00__new__K\x01s\x86b.")
    with pytest.raises(BundleError):
        read_vocabulary(tmp_path / "bad.pkl")
    assert read_vocabulary(VOCAB) == vocabulary()


def test_json_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text("\ufeff" + json.dumps(attributes_of(vocabulary())), encoding="utf-8")
    assert read_vocabulary(tmp_path / "v.json") == vocabulary()


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"{", b"hello", VOCAB.read_bytes()[:300], b"\x80\x04K\x01."])
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(BundleError, match=r"v\.pkl"):
        read_vocabulary(tmp_path / "v.pkl")


def test_a_vocabulary_larger_than_any_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "v.pkl").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(BundleError, match="which is too large for a vocabulary"):
        read_vocabulary(tmp_path / "v.pkl")


def test_the_vocabulary_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text(json.dumps({"word2idx": SMALL}))
    with pytest.raises(BundleError, match=r"has 5 words, .* embeds 52: expected the vocabulary it was trained with"):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", tmp_path / "v.json", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The command


def data_folder(folder: Path, width: int, captions: int = 30, dtype: str = "<f4") -> Path:
    data = folder / "tiny_precomp"
    data.mkdir()
    np.save(data / "dev_ims.npy", np.random.default_rng(2).standard_normal((6, 4, width)).astype(dtype))
    (data / "dev_caps.txt").write_text("".join(f"{CAPTIONS[k % 6]}\n" for k in range(captions)))
    return data


def test_examples_come_from_the_data(tmp_path: Path) -> None:
    data = data_folder(tmp_path, 40)
    _, origin = load_checkpoint(import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", data))
    np.testing.assert_array_equal(origin.example_images, np.load(data / "dev_ims.npy"))
    assert origin.example_captions == [CAPTIONS[k % 6] for k in range(30)]


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_examples_are_float32_whatever_the_data_are(tmp_path: Path, dtype: str) -> None:
    data = data_folder(tmp_path, 40, dtype=dtype)
    _, origin = load_checkpoint(import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", data))
    assert origin.example_images.dtype == torch.float32
    np.testing.assert_array_equal(origin.example_images, np.load(data / "dev_ims.npy").astype(np.float32))


def test_examples_come_from_val_where_there_is_no_dev(tmp_path: Path) -> None:
    data = data_folder(tmp_path, 40)
    for name in ("ims.npy", "caps.txt"):
        (data / f"dev_{name}").rename(data / f"val_{name}")
    _, origin = load_checkpoint(import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", data))
    assert len(origin.example_captions) == 30


def test_examples_that_float32_cannot_hold_are_refused(tmp_path: Path) -> None:
    data = data_folder(tmp_path, 40)
    np.save(data / "dev_ims.npy", np.full((6, 4, 40), 1e300))
    with pytest.raises(BundleError, match="NaN or infinite"):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", data)


@pytest.mark.parametrize(
    ("width", "captions", "message"),
    [
        (41, 30, "has features of width 41, the checkpoint takes 40"),
        (40, 28, "has 28 captions for the 6 rows"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path: Path, width: int, captions: int, message: str) -> None:
    data = data_folder(tmp_path, width, captions)
    with pytest.raises(BundleError, match=message):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has neither dev_ims\.npy, val_ims\.npy nor test_ims\.npy"):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "run", tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="is not empty: name a new folder"):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path)


def test_what_a_killed_import_left_is_no_hindrance(tmp_path: Path) -> None:
    left = tmp_path / ".best.ckpt.k2_9wxyz"
    left.mkdir()
    (left / "best.ckpt").write_bytes(b"half")
    assert load_checkpoint(import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path))
    (tmp_path / "best.ckpt").unlink()
    (tmp_path / ".mine.txt.abcdefgh").touch()  # a file, not a folder
    with pytest.raises(InputError, match="is not empty"):
        import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path)


def test_the_script_imports_and_says_what_comes_next(tmp_path: Path) -> None:
    command = [sys.executable, "export/import_checkpoint.py", FOLDER / "gate_fusion.pth.tar", "--vocab", VOCAB]
    done = subprocess.run(
        [*command, "--output", tmp_path / "run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"next: camp export --checkpoint {tmp_path / 'run/best.ckpt'} --output" in done.stderr
    assert load_checkpoint(tmp_path / "run/best.ckpt")[1].model.variant == "gate_fusion"


def test_an_imported_checkpoint_can_be_trained_on(tmp_path: Path) -> None:
    from camp_sdk.export.training.config import TrainConfig
    from camp_sdk.export.training.run import run_training

    start = import_checkpoint(FOLDER / "gate_fusion.pth.tar", VOCAB, tmp_path / "imported")
    data = data_folder(tmp_path, 40, dtype=">f8")  # training reads any float type
    for name in ("ims.npy", "caps.txt"):
        (data / f"train_{name}").write_bytes((data / f"dev_{name}").read_bytes())
    config = TrainConfig(data, tmp_path / "run", "gate_fusion", start, epochs=1, batch_size=6, devices="1")
    origin = load_checkpoint(run_training(config, tmp_path))[1]
    assert (origin.model.width, origin.model.word_width, origin.model.global_vectors) == (24, 12, True)
