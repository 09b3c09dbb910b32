"""tokenizer.json from anywhere: what the export writes is read, and nothing else reaches the library."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from camp_sdk import BundleError, InputError, Retriever
from camp_sdk.export.network.vocabulary import SPECIALS, build_tokenizer, piece_tokenizer
from camp_sdk.export.released.nltk_words import nltk_tokenizer
from camp_sdk.runtime import tokenizer as tokenizer_module
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest
from camp_sdk.runtime.tokenizer import MAX_CHARACTERS, Tokenizer
from camp_sdk.runtime.tokenizer_file import KNOWN_RULES, checked_tokenizer, rules_hash
from tests.helpers import sentence_package
from tests.helpers.tiny import CAPTIONS

Change = Callable[[dict[str, Any]], Any]
WORDS = build_tokenizer(CAPTIONS, min_count=1).to_str()
NLTK = nltk_tokenizer({word: index for index, word in enumerate((*SPECIALS, "a", "dog"))}).to_str()


def changed(change: Change, text: str = WORDS) -> str:
    raw = json.loads(text)
    result = change(raw)
    return json.dumps(raw if result is None else result)


def put(value: Any, *keys: Any) -> Change:
    def change(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def pieces(tmp_path: Path) -> str:
    path = tmp_path / "tokenizer.json"
    path.write_text(sentence_package.piece_tokenizer().to_str(), encoding="utf-8")
    return piece_tokenizer(path).to_str()


def test_what_the_export_writes_is_read(tmp_path: Path) -> None:
    for text in (WORDS, NLTK, pieces(tmp_path)):
        ours, theirs = Tokenizer(text), Backend.from_str(text)
        assert ours.encode(["a dog"]).ids[0].tolist() == theirs.encode("a dog").ids


def test_the_rules_of_nltk_are_known() -> None:
    """After a change to them, add their new hash; keep the old one, for the bundles that there are."""
    raw = json.loads(NLTK)
    assert rules_hash([raw["normalizer"], raw["pre_tokenizer"]]) in KNOWN_RULES


SLOW = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
LONG = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
UNIGRAM = {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]], "unk_id": 0}
REFUSED = {
    "a pattern that backtracks": put(SLOW, "normalizer"),
    "a pattern among plain steps": put({"type": "Sequence", "normalizers": [{"type": "NFC"}, SLOW]}, "normalizer"),
    "replacements that multiply": put({"type": "Sequence", "normalizers": [LONG] * 40}, "normalizer"),
    "a sequence in a sequence": put(
        {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}, "normalizer"
    ),
    "a text before each text": put({"type": "Prepend", "prepend": "a" * 10**6}, "normalizer"),
    "compiled tables that are none": put({"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "normalizer"),
    "a switch that is no switch": put({"type": "BertNormalizer", "lowercase": [[]]}, "normalizer"),
    "a parameter that is not known": put({"type": "Lowercase", "more": True}, "normalizer"),
    "compiled texts without end": put(
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\4\0\0\0" + bytes(4) + b"a" * 99).decode()},
        "normalizer",
    ),
    "a class in a class": put({"type": "Replace", "pattern": {"Regex": "[a-w&&[^c]]+"}, "content": ""}, "normalizer"),
    "two classes": put({"type": "Replace", "pattern": {"Regex": "[a]+[a]+"}, "content": ""}, "normalizer"),
    "a text for a class": put({"type": "Replace", "pattern": {"Regex": "[a]"}, "content": "aa"}, "normalizer"),
    "long marks for spaces": put({"type": "Metaspace", "replacement": "__"}, "pre_tokenizer"),
    "byte pairs without merges": lambda raw: raw["model"].update(type="BPE", merges=None),
    "merges without end": lambda raw: raw["model"].update(type="BPE", merges=[["s", "t"]] * 10**4),
    "merges left out at random": lambda raw: raw["model"].update(type="BPE", merges=[], dropout=0.5),
    "pieces chosen at random": lambda raw: raw["model"].update(UNIGRAM, alpha=0.1, nbest_size=-1),
    "pieces without scores": lambda raw: raw["model"].update(UNIGRAM, vocab=["a", "b"]),
    "a piece twice": lambda raw: raw["model"].update(UNIGRAM, vocab=[["a", 0.0], ["a", 0.0]]),
    "no piece for the unknown": lambda raw: raw["model"].update(UNIGRAM, unk_id=None),
    "a piece without end": lambda raw: raw["model"].update(UNIGRAM, vocab=[["a", 0.0], ["b" * 10**4, 0.0]]),
    "a split by a pattern": put(
        {"type": "Split", "pattern": {"Regex": "(x*)*y"}, "behavior": "Removed", "invert": False}, "pre_tokenizer"
    ),
    "steps that are numbers": put(7, "normalizer"),
    "a kind that is a list": put({"type": ["NFC"]}, "normalizer"),
    "no unknown word": put("nowhere", "model", "unk_token"),
    "an unknown word that is a list": put([], "model", "unk_token"),
    "another model": put("Random", "model", "type"),
    "no model": lambda raw: raw.pop("model") and None,
    "words without numbers": put({"a": "b"}, "model", "vocab"),
    "no words": put({}, "model", "vocab"),
    "a word twice as far": lambda raw: raw["model"]["vocab"].update(star=10**9),
    "a negative word": lambda raw: raw["model"]["vocab"].update(star=-1),
    "a truth for a number": lambda raw: raw["model"]["vocab"].update(star=True),
    "no truncation": put(None, "truncation"),
    "a stride over the maximum": put(100, "truncation", "stride"),
    "a maximum without room for a word": put(2, "truncation", "max_length"),
    "a maximum without end": put(1 << 40, "truncation", "max_length"),
    "a cut at the left": put("Left", "truncation", "direction"),
    "no markers": put(None, "post_processor"),
    "a thousand markers": lambda raw: raw["post_processor"]["single"].extend(raw["post_processor"]["single"] * 1000),
    "markers without the text": lambda raw: raw["post_processor"]["single"].pop(1) and None,
    "a marker beyond the words": put([10**6], "post_processor", "special_tokens", "<start>", "ids"),
    "many indices for a marker": put([1, 1], "post_processor", "special_tokens", "<start>", "ids"),
    "markers of another kind": put("BertProcessing", "post_processor", "type"),
    "markers that are none": put("ByteLevel", "post_processor", "type"),
    "markers around another text": put("B", "post_processor", "single", 1, "Sequence", "id"),
    "markers of a list": put([], "post_processor", "special_tokens"),
    "an added word that is not there": put([{"id": 99, "content": "zz", "special": True}], "added_tokens"),
    "added words without end": put([{"id": 1, "content": "<start>"}] * 10**4, "added_tokens"),
    "a list": lambda raw: [raw],
    "deep nesting": lambda raw: raw,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_the_export_does_not_write(what: str) -> None:
    content = "[" * 10**5 if what == "deep nesting" else changed(REFUSED[what])
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer \(ValueError: .*\); export the bundle"):
        Tokenizer(content)


@pytest.mark.parametrize("what", ["prefix", "longest"])
def test_word_pieces_with_odd_settings(tmp_path: Path, what: str) -> None:
    change = put("##" * 100, "model", "continuing_subword_prefix")
    if what == "longest":
        change = put(10**9, "model", "max_input_chars_per_word")
    with pytest.raises(BundleError, match="is not a tokenizer"):
        Tokenizer(changed(change, pieces(tmp_path)))


def test_padding_and_decoders_do_not_reach_the_library() -> None:
    text = changed(put({"type": "nothing that exists"}, "decoder"))
    text = changed(put({"strategy": "nothing either"}, "padding"), text)
    assert Tokenizer(text).encode(["star"]).lengths.tolist() == [3]


def test_a_marker_is_what_its_index_says() -> None:
    """The library would show any text in its place."""
    text = changed(put(["other"], "post_processor", "special_tokens", "<start>", "tokens"))
    assert Tokenizer(text).encode(["star"]).words == (("<start>", "star", "<end>"),)


def test_damaged_files_are_read_or_refused() -> None:
    rng = random.Random(1)
    for text in (WORDS, NLTK):
        for _ in range(400):
            content = bytearray(text.encode())
            for _ in range(rng.randint(1, 3)):
                content[rng.randrange(len(content))] = rng.randrange(256)
            try:
                Tokenizer(bytes(content)).encode(["a red star", "A dog's, star!"])
            except (BundleError, InputError):
                continue


class Panic(BaseException):
    """What a panic of the library is to Python: not an `Exception`."""


def test_a_panic_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def panic(text: str) -> None:
        raise Panic("index out of bounds")

    tokenizer = Tokenizer(WORDS)
    tokenizer._backend = type("Broken", (), {"encode_batch": lambda self, texts: panic("")})()
    with pytest.raises(BundleError, match=r"cannot encode these texts \(Panic: index out of bounds\)"):
        tokenizer.encode(["star"])
    monkeypatch.setattr(Backend, "from_str", staticmethod(panic), raising=False)
    monkeypatch.setattr(tokenizer_module, "checked_tokenizer", lambda content: content)
    monkeypatch.setattr("tokenizers.Tokenizer", type("Backend", (), {"from_str": staticmethod(panic)}))
    with pytest.raises(BundleError, match=r"is not a tokenizer \(Panic: index out of bounds\)"):
        Tokenizer(WORDS)


def test_ctrl_c_in_the_library_is_ctrl_c() -> None:
    def interrupt(self: object, texts: list[str]) -> None:
        raise KeyboardInterrupt

    tokenizer = Tokenizer(WORDS)
    tokenizer._backend = type("Interrupted", (), {"encode_batch": interrupt})()
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode(["star"])


def test_a_text_of_megabytes(feature_retriever: Retriever) -> None:
    assert Tokenizer(NLTK).encode(["a " * (MAX_CHARACTERS // 2)]).lengths.tolist() == [49]
    for call in (feature_retriever.check_queries, feature_retriever.encode_texts):
        with pytest.raises(InputError, match=r"text 1 has 10000000 characters: expected at most 10000"):
            call(["star", "a star" * (10**7 // 6) + "star"])


def test_words_that_the_text_graph_does_not_know(bundle_copy: Path) -> None:
    """Engines differ in what they do with an index beyond the vocabulary; some compute with it."""
    backend = Backend.from_file(str(bundle_copy / "tokenizer.json"))
    vocabulary = backend.get_vocab()
    backend.model = models.WordLevel(vocabulary | {"zebra": len(vocabulary)}, unk_token="<unk>")
    (bundle_copy / "tokenizer.json").write_text(backend.to_str(), encoding="utf-8")
    write_manifest(bundle_copy, read_manifest(bundle_copy / MANIFEST_FILE))
    count = len(vocabulary)
    with pytest.raises(BundleError, match=rf"tokenizer\.json has {count + 1} words, the text graph knows {count}"):
        Retriever(bundle_copy, "onnxruntime")


def test_the_size_of_a_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("camp_sdk.runtime.tokenizer_file.BYTES_LIMIT", 100)
    with pytest.raises(ValueError, match=r"it has \d+ bytes, expected at most 100"):
        checked_tokenizer(WORDS)
