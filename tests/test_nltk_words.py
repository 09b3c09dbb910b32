"""The tokenizer of released checkpoints: the words that NLTK's `word_tokenize` makes, recorded and live.

tests/released/nltk_words.jsonl holds what the real function made of captions, with its own model of English sentences;
tests/helpers/record_nltk_words.py wrote it. The live tests need no data: their sentence splitter knows our list of
abbreviations.
"""

# ruff: noqa: RUF001, SIM905  # captions as people write them; pieces as one reads them

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from camp_sdk import InputError
from camp_sdk.export.network.vocabulary import MAX_WORDS, SPECIALS
from camp_sdk.export.released.nltk_words import ABBREVIATIONS, nltk_tokenizer
from camp_sdk.runtime.tokenizer import Tokenizer
from tests.helpers.nltk_captions import RECORDED, captions

START, END, UNKNOWN = 1, 2, 3
WORDS = ("a", "dog", "dr.", "``", "''", ".", "n't", "does", "café")
VOCABULARY = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
TOKENIZER = nltk_tokenizer(VOCABULARY)

# What is known to differ, with the reason; docs/tokenisation.md has the same list. None is in the recorded captions.
DIFFERENT = {
    "Plan a. 𝐁 is late": "a capital letter without a small one follows an initial: Punkt looks the word up",
    "Rank 5. Administrators wait": "one of four words that Punkt saw begin sentences, always without a capital",
    "vs. a.!.": "a lone letter's period directly before a mark that is not alone, in the word after an abbreviation",
    "'ſ": "the long s, which NLTK takes for an s behind an apostrophe",
    "cannot\u0301": "a combining mark right behind one of the contractions",
    "İgonna": "a combining mark, of the lower-cased letter, right before one of the contractions",
    "a \ufdd0. b": "a character that Unicode sets aside for a program's own use: ours",
    "--" * 42: "over 80 backticks, quotes, dashes, colons or commas in a row",
    "&" * 10 + "dr. x": "over nine marks before an abbreviation",
    'a?"' + "b" * 100 + "-dr. x": "over 99 characters without white space, with sentence ends inside",
}

PIECES = (
    *"a man dog dr mr. st u.s p.m. a.m. e.g. etc vs. no. 5 5:30 3.5 1,000 10. j. T. 's 't 'll".split(),
    *"n't don't it's dogs'".split(),
    *"cannot gonna GOTTA lemme gimme wanna d'ye more'n 'tis 'twas they're rock'n'roll".split(),
    *"café 猫 🙂 ½ t-shirt well-dr.".split(),
    *"at&t http://a.b/c?d=e İx ΟΔΟΣ . ? ! , ; : ' \" ` ( ) [ ] { } < > - * & % $ # @ / _".split(),
    *"... .. -- --- – — '' `` “ ”".split(),
    *'‘ ’ « » „ … ?! ." .) \u00a0'.split(" "),
    *(" ", " ", " ", " ", " ", " ", "  ", "\n", "\t"),
)
# Letters and marks of Europe, and some of elsewhere: tables of rarer characters differ between versions of Python.
CHARACTERS = st.characters(
    max_codepoint=0x52F, exclude_categories=("Cn", "Cs"), exclude_characters="ſϒϓϔ"
) | st.sampled_from("猫。かな한🙂½²—–…“”‘’‚„\u200d\u200b\u2028\u3000")


@pytest.fixture(scope="module")
def recorded() -> list[dict[str, list[str]]]:
    return [json.loads(line) for line in RECORDED.read_text(encoding="utf-8").split("\n")[1:-1]]


@pytest.fixture(scope="module")
def split_sentences() -> PunktSentenceTokenizer:
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters)


def words(text: str, tokenizer: tokenizers.Tokenizer = TOKENIZER) -> list[str]:
    assert tokenizer.normalizer is not None
    assert tokenizer.pre_tokenizer is not None
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))]


def nltk_words(text: str, split_sentences: PunktSentenceTokenizer) -> list[str]:
    sentences = split_sentences.tokenize(text.lower())
    return [word for sentence in sentences for word in NLTKWordTokenizer().tokenize(sentence)]


# Recorded


def test_recorded_captions_are_the_scripts(recorded: list[dict[str, list[str]]]) -> None:
    assert [line["text"] for line in recorded] == captions()
    assert len(recorded) >= 1000


def test_recorded_captions_give_the_recorded_words(recorded: list[dict[str, list[str]]]) -> None:
    different = [line["text"] for line in recorded if words(line["text"]) != line["tokens"]]
    assert set(different) <= DIFFERENT.keys()
    assert len(different) <= len(recorded) / 1000


def test_the_live_splitter_gives_the_recorded_words(
    recorded: list[dict[str, list[str]]], split_sentences: PunktSentenceTokenizer
) -> None:
    """So that our abbreviations are what matters of Punkt's tables."""
    different = [line["text"] for line in recorded if nltk_words(line["text"], split_sentences) != line["tokens"]]
    assert different == []


# Live


@pytest.mark.parametrize(
    "text", [*WORDS[:3], 'a man\'s "dog"', "he said 'no.'", "wait... (what?!)", "``a'' -- 5:30, 1,000"]
)
def test_one_sentence(text: str) -> None:
    assert words(text) == NLTKWordTokenizer().tokenize(text)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=20).map("".join))
def test_several_sentences(split_sentences: PunktSentenceTokenizer, text: str) -> None:
    assert words(text) == nltk_words(text, split_sentences)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.text(CHARACTERS | st.sampled_from(" .'\"?!,n"), max_size=40))
@example(' ?"!(')
@example("a.\u00a0b. c")
@example("a\x1fb \x1c")
def test_any_text(split_sentences: PunktSentenceTokenizer, text: str) -> None:
    assert words(text) == nltk_words(text, split_sentences)


@pytest.mark.parametrize("text", DIFFERENT)
def test_what_is_listed_as_different_is(text: str, split_sentences: PunktSentenceTokenizer) -> None:
    parameters = split_sentences._params
    parameters.ortho_context["administrators"] = 48  # Punkt's: seen at the beginning and inside, in lower case
    assert words(text) != nltk_words(text, split_sentences)


# Indices


def ids(text: str, tokenizer: tokenizers.Tokenizer = TOKENIZER) -> list[int]:
    return list(tokenizer.encode(text).ids)


def test_words_get_their_indices() -> None:
    expected = ["``", "a", "dog", "''", "does", "n't", "."]
    assert ids('"A DOG" doesn\'t.') == [START, *(VOCABULARY[word] for word in expected), END]


def test_unknown_words_share_one_index() -> None:
    assert ids("a zebra <unk>") == [START, VOCABULARY["a"], UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, END]


@pytest.mark.parametrize("count", [MAX_WORDS - 1, MAX_WORDS, MAX_WORDS + 1, 500])
def test_captions_are_cut_at_47_words(count: int) -> None:
    assert ids("dog " * count) == [START, *[VOCABULARY["dog"]] * min(count, 47), END]


def test_a_saved_tokenizer_gives_the_same() -> None:
    saved = tokenizers.Tokenizer.from_str(TOKENIZER.to_str())
    for caption in captions()[:400]:
        assert words(caption, saved) == words(caption)
        assert ids(caption, saved) == ids(caption)


@pytest.mark.parametrize(
    "vocabulary",
    [{}, {"a": 0}, {word: index for index, word in enumerate(("a", *SPECIALS))}],
    ids=["empty", "none", "moved"],
)
def test_a_vocabulary_without_the_markers(vocabulary: dict[str, int]) -> None:
    with pytest.raises(InputError, match="expected the indices 0 to 3"):
        nltk_tokenizer(vocabulary)


# As the runtime shows it


def test_words_are_the_text_as_typed(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(TOKENIZER.to_str(), encoding="utf-8")
    tokens = Tokenizer(path.read_bytes()).encode(["A \"Café\" doesn't -- (can't) ''close''. Dr. No cannot"])
    inner = (
        "A",
        '"',
        "Café",
        '"',
        "does",
        "n't",
        "--",
        "(",
        "ca",
        "n't",
        ")",
        "'",
        "close",
        "''",
        ".",
        "Dr.",
        "No",
        "can",
        "not",
    )
    assert tokens.words == (("<start>", *inner, "<end>"),)


def test_the_runtime_composes_nothing_the_released_code_did_not(tmp_path: Path) -> None:
    vocabulary = VOCABULARY | {"e\u0301t\u00e9": 13}
    path = tmp_path / "tokenizer.json"
    path.write_text(nltk_tokenizer(vocabulary).to_str(), encoding="utf-8")
    tokens = Tokenizer(path.read_bytes()).encode(["e\u0301t\u00e9", "\u00e9t\u00e9"])
    assert tokens.ids[:, 1].tolist() == [13, UNKNOWN]
    assert tokens.words[0][1] == "e\u0301t\u00e9"


def test_offsets_rise_and_cover_the_words() -> None:
    for caption in captions():
        spans = TOKENIZER.encode(caption, add_special_tokens=False).offsets
        assert all(start < end for start, end in spans)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_a_tokenizer_can_be_shown() -> None:
    assert repr(TOKENIZER).startswith("Tokenizer(")
    assert TOKENIZER.normalizer is not None
    assert repr(TOKENIZER.normalizer).startswith("Sequence(")
