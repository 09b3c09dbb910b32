"""Check a tokenizer.json before the tokenizer library reads it.

The library runs what the file describes: regular expressions that backtrack, replacements that multiply the text, and
settings at which it panics. Therefore only what the export writes is accepted, and of that only what encoding needs is
passed on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

BYTES_LIMIT = 64 << 20
MAX_LENGTH = 4096  # of a text, in tokens, both markers counted
MAX_STEPS = 8  # in a sequence of normalizers
MAX_PREFIX = 8  # characters before a word piece that continues a word
MODELS = ("WordLevel", "WordPiece", "BPE", "Unigram")
CHARACTER_CLASS = re.compile(r"\[\^?(?:[^\[\]\\&]|&(?!&)|\\.)+\]\+?", re.DOTALL)  # one, with no class inside
MAX_CLASS = 200  # characters of its expression
MAX_TABLE, MAX_REPLACEMENT = 1 << 20, 64  # bytes of a compiled table, and of what it puts in the place of a character
MAX_PIECE_CHARACTERS = 200  # of a word: it is cut into pieces in time that grows with its square
# Steps that take time in proportion to the text and have no parameters but switches.
NORMALIZERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"), frozenset()),
    "Strip": frozenset({"strip_left", "strip_right"}),
    "BertNormalizer": frozenset({"clean_text", "handle_chinese_chars", "strip_accents", "lowercase"}),
}
SPLITTERS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Whitespace", "WhitespaceSplit", "BertPreTokenizer"), frozenset()),
    "ByteLevel": frozenset({"add_prefix_space", "trim_offsets", "use_regex"}),
}
# Steps with other parameters that are accepted as they are, as (type, pattern, what is done): those of CLIP, whose
# alternatives do not backtrack, and of SigLIP. None adds characters.
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
CLIP_MARKERS = r"<\|startoftext\|>|<\|endoftext\|>|"
KNOWN_STEPS: tuple[dict[str, Any], ...] = (
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False},
    *(
        {"type": "Split", "pattern": {"Regex": words}, "behavior": "Removed", "invert": True}
        for words in (CLIP_WORDS, CLIP_MARKERS + CLIP_WORDS)
    ),
)
# SHA-256 of the other normalizers and pre-tokenizers that the export writes: NLTK's rules.
KNOWN_RULES = frozenset({"e87cce57cf99a0fd8cc96a6bb2c1ee3a6682f42a013919a1e4bb9b3f8ab6a39f"})


def checked_tokenizer(content: str | bytes) -> str:
    """The part of a tokenizer.json that encoding needs.

    Args:
        content: the file's content.

    Returns:
        The text of a tokenizer.json without padding and decoder, which the library may read.

    Raises:
        ValueError: the content is not JSON, or holds something that the export does not write.
    """
    if len(content) > BYTES_LIMIT:
        raise ValueError(f"it has {len(content)} bytes, expected at most {BYTES_LIMIT}")
    try:
        raw = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require(isinstance(raw, dict), "expected a JSON object")
    rules = [raw.get("normalizer"), raw.get("pre_tokenizer")]
    if not (_is_plain(rules[0], NORMALIZERS, "normalizers") and _is_plain(rules[1], SPLITTERS, "pretokenizers")):
        _require(rules_hash(rules) in KNOWN_RULES, "its normalizer or pre_tokenizer is not one that the export writes")
    vocabulary = _check_model(raw.get("model"))
    markers = _marked(raw.get("post_processor"), vocabulary)
    _check_truncation(raw.get("truncation"))
    for token in (added := _listed(raw.get("added_tokens"), "added_tokens", len(vocabulary))):
        known = isinstance(token, dict) and vocabulary.get(_text(token.get("content"))) == token.get("id")
        _require(known, "an added token is not in the vocabulary")
    kept = {name: raw.get(name) for name in ("version", "truncation", "normalizer", "pre_tokenizer", "model")}
    return json.dumps(kept | {"added_tokens": added, "post_processor": markers})


def rules_hash(rules: list[Any]) -> str:
    """SHA-256 of [normalizer, pre_tokenizer] as in a tokenizer.json, in hexadecimal."""
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _listed(value: Any, name: str, most: int) -> list[Any]:
    _require(isinstance(value, list) and len(value) <= most, f"{name} is not a list of at most {most}")
    return list(value)


def _is_plain(step: Any, known: Mapping[str, frozenset[str]], items: str) -> bool:
    """Whether a step, or each one of a sequence, is known and has nothing but switches as parameters."""
    if step is None:
        return True
    if not isinstance(step, dict):
        return False
    if step.get("type") == "Sequence":
        steps = step.get(items)
        return isinstance(steps, list) and len(steps) <= MAX_STEPS and all(_is_single(each, known) for each in steps)
    return _is_single(step, known)


def _is_single(step: Any, known: Mapping[str, frozenset[str]]) -> bool:
    if step in KNOWN_STEPS:
        return True
    name = _text(step.get("type")) if isinstance(step, dict) else ""
    if name == "Replace" and known is NORMALIZERS:
        return _leaves_out(step)
    if name == "Precompiled" and known is NORMALIZERS:
        return _is_table(step)
    if name == "Metaspace" and known is SPLITTERS:
        return _is_metaspace(step)
    switches = {key: value for key, value in step.items() if key != "type"} if name else {}
    booleans = all(value is None or isinstance(value, bool) for value in switches.values())
    return name in known and booleans and switches.keys() <= known[name]


def _leaves_out(step: Mapping[str, Any]) -> bool:
    """Whether a step leaves out the characters of one class, or puts one character in the place of each."""
    pattern, content = step.get("pattern"), step.get("content")
    expression = _text(pattern.get("Regex")) if isinstance(pattern, dict) and len(pattern) == 1 else ""
    one_class = len(expression) <= MAX_CLASS and CHARACTER_CLASS.fullmatch(expression) is not None
    return one_class and isinstance(content, str) and len(content) <= 1 and len(step) == 3


def _is_table(step: Mapping[str, Any]) -> bool:
    """Whether a step is a table of SentencePiece that puts a short text in the place of a character.

    The table is a trie, preceded by its size in bytes, and the texts, each ended by a zero.
    """
    try:
        table = base64.b64decode(_text(step.get("precompiled_charsmap")), validate=True)
    except ValueError:
        return False
    size = int.from_bytes(table[:4], "little")
    texts = table[4 + size :]
    fits = 0 < size <= len(table) - 4 and size % 4 == 0 and len(table) <= MAX_TABLE
    return fits and len(step) == 2 and all(len(text) <= MAX_REPLACEMENT for text in texts.split(b"\0"))


def _is_metaspace(step: Mapping[str, Any]) -> bool:
    """Whether a step puts a visible mark in the place of each space, and at most one before the text."""
    rest = {name: value for name, value in step.items() if name not in ("type", "replacement", "prepend_scheme")}
    marks = _text(step.get("replacement")), step.get("prepend_scheme", "always")
    switches = rest.keys() <= {"split", "add_prefix_space"} and all(isinstance(value, bool) for value in rest.values())
    return len(marks[0]) == 1 and marks[1] in ("always", "first", "never") and switches


def _check_model(model: Any) -> dict[str, int]:
    """Check the model, words or pieces of words, and return its vocabulary."""
    _require(isinstance(model, dict), "it has no model")
    kind, vocabulary = model.get("type"), model.get("vocab")
    _require(kind in MODELS, f"its model is a {str(kind)[:40]}, expected one of {', '.join(MODELS)}")
    if kind == "Unigram":
        return _check_unigram(model)
    indices = vocabulary.values() if isinstance(vocabulary, dict) else ()
    _require(
        len(indices) > 0 and all(type(index) is int for index in indices), "its vocabulary is not words and numbers"
    )
    _require(sorted(indices) == list(range(len(indices))), "its words are not numbered 0 to n - 1, each once")
    _require(_text(model.get("unk_token")) in vocabulary, "its vocabulary has no word for unknown words")
    if kind == "WordPiece":
        prefix, most = model.get("continuing_subword_prefix"), model.get("max_input_chars_per_word")
        _require(isinstance(prefix, str) and len(prefix) <= MAX_PREFIX, "its prefix of word pieces is not a short text")
        fits = type(most) is int and 1 <= most <= MAX_PIECE_CHARACTERS
        _require(fits, f"its longest word is not 1 to {MAX_PIECE_CHARACTERS} characters")
    if kind == "BPE":
        _check_merges(model)
    return dict(vocabulary)


def _check_unigram(model: Mapping[str, Any]) -> dict[str, int]:
    """Check pieces with scores, and return them as a vocabulary."""
    pieces = model.get("vocab")
    shown = "its vocabulary is not pieces and scores"
    _require(isinstance(pieces, list) and all(isinstance(piece, list) and len(piece) == 2 for piece in pieces), shown)
    assert isinstance(pieces, list)
    listed = {_text(name): index for index, (name, _) in enumerate(pieces)}
    scores = all(type(score) in (int, float) and math.isfinite(score) for _, score in pieces)
    _require(scores and len(listed) == len(pieces) > 0, shown)
    short = all(len(name) <= MAX_PIECE_CHARACTERS for name in listed)
    _require(short, f"it has pieces of more than {MAX_PIECE_CHARACTERS} characters")
    unknown = model.get("unk_id")
    _require(type(unknown) is int and 0 <= unknown < len(pieces), "its vocabulary has no piece for unknown characters")
    _require(isinstance(model.get("byte_fallback", False), bool), "its byte_fallback is neither true nor false")
    _require(model.get("alpha") is None and model.get("nbest_size") is None, "it chooses pieces at random")
    return listed


def _check_merges(model: Mapping[str, Any]) -> None:
    """Check the settings of byte pairs; the library checks that both sides of each merge are in the vocabulary."""
    _require(model.get("dropout") is None, "it leaves out merges at random")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        affix = model.get(name)
        _require(affix is None or (isinstance(affix, str) and len(affix) <= MAX_PREFIX), f"its {name} is no short text")
    for name in ("fuse_unk", "byte_fallback", "ignore_merges"):
        _require(isinstance(model.get(name, False), bool), f"its {name} is neither true nor false")
    _listed(model.get("merges"), "merges", len(model["vocab"]))


def _marked(processor: Any, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The step that adds a marker at each end of a text, or at its end alone, written anew from the markers' names."""
    kind, single = (processor.get("type"), processor.get("single")) if isinstance(processor, dict) else (None, None)
    kinds = [_kind_of(piece) for piece in single] if isinstance(single, list) and len(single) <= 3 else []
    shown = "it does not add a marker at each end, or at the end"
    around = ["SpecialToken", "Sequence", "SpecialToken"]
    _require(kind == "TemplateProcessing" and kinds in (around, around[1:]), shown)
    assert isinstance(single, list)
    _require(single[-2]["Sequence"].get("id") == "A", shown)
    names = [_text(piece["SpecialToken"].get("id")) for piece in single if "SpecialToken" in piece]
    listed = processor.get("special_tokens")
    for name in names:
        marker = listed.get(name) if isinstance(listed, dict) else None
        indices = marker.get("ids") if isinstance(marker, dict) else None
        _require(name in vocabulary and indices == [vocabulary[name]], "a marker is not in the vocabulary")
    *first, last = ({"SpecialToken": {"id": name, "type_id": 0}} for name in names)
    text, other = ({"Sequence": {"id": letter, "type_id": place}} for place, letter in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [*first, text, last],
        "pair": [text, other],
        "special_tokens": {name: {"id": name, "ids": [vocabulary[name]], "tokens": [name]} for name in names},
    }


def _kind_of(piece: Any) -> str:
    """Which part of a template this is; empty if it is none."""
    kinds = list(piece) if isinstance(piece, dict) else []
    return kinds[0] if len(kinds) == 1 and isinstance(piece[kinds[0]], dict) else ""


def _check_truncation(truncation: Any) -> None:
    _require(isinstance(truncation, dict), "it does not truncate long texts")
    length, expected = truncation.get("max_length"), {"direction": "Right", "strategy": "LongestFirst", "stride": 0}
    _require(type(length) is int and 3 <= length <= MAX_LENGTH, f"it truncates to other lengths than 3 to {MAX_LENGTH}")
    _require({name: truncation.get(name) for name in expected} == expected, f"its truncation is not {expected}")
