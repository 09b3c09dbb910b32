"""Captions to word indices: markers, unknown words, the cut, and words as they were typed."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from camp_sdk import BundleError, InputError
from camp_sdk.export.network.vocabulary import MAX_WORDS, build_tokenizer
from camp_sdk.runtime.tokenizer import Tokenizer
from tests.helpers.tiny import CAPTIONS

START, END, UNKNOWN = 1, 2, 3


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(build_tokenizer(CAPTIONS, min_count=1).to_str(), encoding="utf-8")
    return Tokenizer(path.read_bytes())


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    tokens = tokenizer.encode([text])
    return tokens.ids[0].tolist()


def test_captions_are_wrapped_in_markers(tokenizer: Tokenizer) -> None:
    first, *inner, last = ids(tokenizer, "a red circle")
    assert (first, last) == (START, END)
    assert all(index > UNKNOWN for index in inner)


def test_case_does_not_matter(tokenizer: Tokenizer) -> None:
    assert ids(tokenizer, "A Small RED circle") == ids(tokenizer, "a small red circle")


@pytest.mark.parametrize("text", ["a  red\tcircle", "  a red circle\n", "a\u00a0red circle"])
def test_white_space_does_not_matter(tokenizer: Tokenizer, text: str) -> None:
    assert ids(tokenizer, text) == ids(tokenizer, "a red circle")


def test_punctuation_stands_apart(tokenizer: Tokenizer) -> None:
    assert ids(tokenizer, "a star,circle!") == ids(tokenizer, "a star , circle !")


def test_unknown_words_share_one_index(tokenizer: Tokenizer) -> None:
    assert ids(tokenizer, "zebra red quux") == [START, UNKNOWN, ids(tokenizer, "red")[1], UNKNOWN, END]


@pytest.mark.parametrize("marker", ["<pad>", "<start>", "<end>", "<unk>"])
def test_a_typed_marker_is_no_marker(tokenizer: Tokenizer, marker: str) -> None:
    inner = ids(tokenizer, f"red {marker} star")[1:-1]
    assert inner == [ids(tokenizer, "red")[1], UNKNOWN, UNKNOWN, UNKNOWN, ids(tokenizer, "star")[1]]


def test_texts_are_padded_with_zeros_to_the_longest(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(["star", "a red circle"])
    assert tokens.lengths.tolist() == [3, 5]
    assert tokens.ids.shape == (2, 5)
    assert tokens.ids[0, 3:].tolist() == [0, 0]
    assert tokens.ids.dtype == tokens.lengths.dtype == "int64"


def test_a_batch_equals_its_texts_alone(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(CAPTIONS)
    for row, length, caption in zip(tokens.ids, tokens.lengths, CAPTIONS, strict=True):
        assert row[:length].tolist() == ids(tokenizer, caption)


@pytest.mark.parametrize("count", [MAX_WORDS - 1, MAX_WORDS, MAX_WORDS + 1, 500])
def test_captions_are_cut_at_47_words(tokenizer: Tokenizer, count: int) -> None:
    kept = min(count, 47)
    assert ids(tokenizer, "red " * count) == [START, *[ids(tokenizer, "red")[1]] * kept, END]


def test_words_are_the_text_as_typed(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(["A  RED, zebra's circle"])
    assert tokens.words == (("<start>", "A", "RED", ",", "zebra", "'", "s", "circle", "<end>"),)


@pytest.mark.parametrize("word", ["café", "cafe\u0301", "İstanbul", "ﬁsh", "猫", "ΟΔΟΣ"])
def test_words_beyond_ascii_keep_their_letters(tokenizer: Tokenizer, word: str) -> None:
    composed = unicodedata.normalize("NFC", word)  # as the tokenizer sees it
    assert tokenizer.encode([f"red {word} star"]).words == (("<start>", "red", composed, "star", "<end>"),)


def test_there_is_a_word_for_every_index(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode([*CAPTIONS, "red " * 100])
    assert [len(words) for words in tokens.words] == tokens.lengths.tolist()


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"])
def test_an_empty_text_is_named(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(InputError, match=r"text 1 .* is empty: expected at least one word"):
        tokenizer.encode(["star", text])


@pytest.mark.parametrize(("text", "kind"), [(5, "int"), (None, "NoneType"), (b"star", "bytes"), (["star"], "list")])
def test_something_else_than_a_string_is_named(tokenizer: Tokenizer, text: object, kind: str) -> None:
    with pytest.raises(InputError, match=f"text 1 is a {kind}: expected a string"):
        tokenizer.encode(["star", text])  # type: ignore[list-item]  # on purpose


def test_a_text_that_is_not_unicode_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="text 1"):
        tokenizer.encode(["star", "red \ud800"])


def test_no_text_gives_no_row(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode([])
    assert (len(tokens.ids), len(tokens.lengths), tokens.words) == (0, 0, ())


@pytest.mark.parametrize("query", ["zebra", "zebra quux", "<pad>", "?!?"])
def test_a_query_without_a_known_word(tokenizer: Tokenizer, query: str) -> None:
    with pytest.raises(
        InputError, match=r"no word of the query .* is in the model's vocabulary of \d+ words; use words"
    ):
        tokenizer.check_queries([query])


def test_one_known_word_is_enough(tokenizer: Tokenizer) -> None:
    tokenizer.check_queries(["quux red zebra"])


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"not json", b"\xff\xfe\x00"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer .*; export the bundle again"):
        Tokenizer(path.read_bytes())


def test_a_tokenizer_without_truncation_or_with_padding_is_read(tmp_path: Path) -> None:
    backend = build_tokenizer(CAPTIONS, min_count=1)
    backend.enable_padding(length=20)
    path = tmp_path / "tokenizer.json"
    path.write_text(backend.to_str(), encoding="utf-8")
    assert Tokenizer(path.read_bytes()).encode(["star"]).lengths.tolist() == [3]
