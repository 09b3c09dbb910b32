"""Tokens that most training captions hold: counted from captions, kept in checkpoints, written into manifests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from camp_sdk import Bundle, BundleError
from camp_sdk.export.bundling.writer import _manifest
from camp_sdk.export.import_checkpoint import import_checkpoint
from camp_sdk.export.network.checkpoint import KEY, load_checkpoint
from camp_sdk.export.network.vocabulary import build_tokenizer, frequent_tokens
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.run import Run
from camp_sdk.runtime.manifest import Manifest
from camp_sdk.runtime.manifest_values import MAX_STOP_WORDS
from tests.helpers import sentence_package
from tests.helpers.manifests import drop, put, rewrite
from tests.helpers.tiny import save_tiny_checkpoint, tiny_origin

RELEASED = Path(__file__).parent / "released"


def test_words_of_more_than_half_of_the_captions_are_frequent() -> None:
    captions = ["The red star", "the, the blue star", "a red the", "dogs"]
    tokenizer = build_tokenizer(captions, min_count=2).to_str()  # blue, dogs, a and the comma are unknown
    assert frequent_tokens(tokenizer, captions) == ["the"]  # red and star: half of the captions, not more
    assert frequent_tokens(tokenizer, captions[:3]) == ["red", "star", "the"]
    assert frequent_tokens(tokenizer, ["<unk> <start> dogs", "dogs <end> <unk>"]) == []


def test_word_pieces_are_counted_by_piece() -> None:
    tokenizer = sentence_package.piece_tokenizer().to_str()
    assert frequent_tokens(tokenizer, ["running dog", "dogning", "blue"]) == ["##ning", "dog"]


def test_captions_are_counted_across_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["a star", "a dog", "the star", "a star"]
    tokenizer = build_tokenizer(captions, min_count=1).to_str()
    monkeypatch.setattr("camp_sdk.export.network.vocabulary.ENCODED_AT_ONCE", 3)
    assert frequent_tokens(tokenizer, captions) == ["a", "star"]


# In checkpoints and bundles


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of eight images, five captions each, in which train and dev have other words."""
    folder = tmp_path_factory.mktemp("tiny_precomp")
    for split, text in (("train", "one thing of kind {}"), ("dev", "another one {}")):
        np.save(folder / f"{split}_ims.npy", np.random.default_rng(0).standard_normal((8, 3, 6), dtype=np.float32))
        (folder / f"{split}_caps.txt").write_text("\n".join(text.format(k) for k in range(40)) + "\n")
    return folder


def test_training_counts_its_own_captions(data: Path, tmp_path: Path) -> None:
    run = Run(TrainConfig(data, tmp_path / "run", width=8, word_width=8, batch_size=4, min_count=1, devices="1"))
    assert run.prepare(tmp_path)[1].stop_words == ["kind", "of", "one", "thing"]


def test_a_run_from_a_checkpoint_counts_with_its_tokenizer(data: Path, tmp_path: Path) -> None:
    start = save_tiny_checkpoint(tmp_path / "start.ckpt", "paper", pictures=False)
    features = tmp_path / "wide"
    features.mkdir()
    for split in ("train", "dev"):
        np.save(features / f"{split}_ims.npy", np.zeros((8, 3, 12), np.float32))
        (features / f"{split}_caps.txt").write_text((data / f"{split}_caps.txt").read_text().replace("one", "star"))
    run = Run(TrainConfig(features, tmp_path / "run", start=start, batch_size=4, devices="1"))
    assert run.prepare(tmp_path)[1].stop_words == ["of", "star"]  # the other words are unknown to it


def test_a_checkpoint_keeps_its_stop_words(tmp_path: Path) -> None:
    path = save_tiny_checkpoint(tmp_path / "a.ckpt", "paper", pictures=False)
    loaded = torch.load(path, weights_only=True)
    loaded[KEY] = replace(tiny_origin("paper", False), stop_words=["a", "red"]).as_dict()
    torch.save(loaded, path)
    model, origin = load_checkpoint(path)
    assert origin.stop_words == ["a", "red"]
    manifest = _manifest(origin, {}, model.scorer)
    assert (manifest.stop_words, manifest.vocabulary) == (("a", "red"), origin.model.vocabulary_size)
    del loaded[KEY]["stop_words"]  # as in older checkpoints
    torch.save(loaded, path)
    assert load_checkpoint(path)[1].stop_words == []


def test_an_import_counts_real_captions_alone(tmp_path: Path) -> None:
    files = RELEASED / "gate_fusion.pth.tar", RELEASED / "vocab.pkl"
    bare = load_checkpoint(import_checkpoint(*files, tmp_path / "bare"))[1]
    assert bare.stop_words == []
    word = next(w for w in bare.example_captions[0].split() if w.isalpha())
    np.save(tmp_path / "dev_ims.npy", np.zeros((2, 3, bare.model.feature_width), np.float32))
    (tmp_path / "dev_caps.txt").write_text(f"{word}\n" * 10)
    assert load_checkpoint(import_checkpoint(*files, tmp_path / "run", tmp_path))[1].stop_words == [word]


def test_a_manifest_keeps_stop_words_and_vocabulary(feature_bundle: Path, bundle_copy: Path) -> None:
    manifest = Bundle(feature_bundle).manifest
    assert (manifest.stop_words, manifest.vocabulary) == ((), tiny_origin("paper", False).model.vocabulary_size)
    changed = replace(manifest, stop_words=("a", "##s"), vocabulary=7)
    assert Manifest.from_dict(changed.as_dict()) == changed
    for key in ("stop_words", "vocabulary"):
        rewrite(bundle_copy, drop("tokenizer", key))
    older = Bundle(bundle_copy).manifest
    assert (older.stop_words, older.vocabulary) == ((), None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stop_words", "a the"),
        ("stop_words", None),
        ("stop_words", ["a", 1]),
        ("stop_words", ["a"] * (MAX_STOP_WORDS + 1)),
        ("vocabulary", 0),
        ("vocabulary", True),
        ("vocabulary", "30"),
        ("vocabulary", 30.0),
    ],
)
def test_a_manifest_with_broken_words_is_refused(bundle_copy: Path, key: str, value: object) -> None:
    rewrite(bundle_copy, put(value, "tokenizer", key))
    with pytest.raises(BundleError, match=rf"breaks the contract .*{key}"):
        Bundle(bundle_copy)
