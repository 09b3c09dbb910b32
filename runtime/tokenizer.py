"""Turn captions into indices of words or word pieces, by the bundle's tokenizer.json.

The file is in the format of Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import BundleError, InputError


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Args:
        ids: word indices [T, N], int64, padded with 0.
        lengths: the number of words of each text [T], int64, both markers counted.
        words: the words of each text, markers included.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    words: tuple[tuple[str, ...], ...]

    def distinct(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Find the texts that differ in their ids, which is all that the network reads of them.

        Returns:
            The index of the first text of each kind, [D]; and for every text the position of its kind in that list,
            [T].
        """
        _, first, where = np.unique(self.ids, axis=0, return_index=True, return_inverse=True)
        return first, where.reshape(-1)  # NumPy 2.0.0 returns an extra axis


class Tokenizer:
    """Lower-cases texts, splits them into words, truncates them and adds two markers, as the file specifies.

    Args:
        path: the path of tokenizer.json.

    Raises:
        BundleError: the file is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend  # imported here, so that importing camp_sdk stays fast

        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every parse error
            raise BundleError(f"{path} is not a tokenizer ({error}); export the bundle again") from None
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # a marker typed in a text is treated as an ordinary word
        self._unknown = getattr(self._backend.model, "unk_token", None)
        normaliser = self._backend.normalizer
        self._composes = normaliser is not None and normaliser.normalize_str("e\u0301") == "\xe9"

    @property
    def vocabulary_size(self) -> int:
        """The number of words, or word pieces, in the vocabulary."""
        return int(self._backend.get_vocab_size())

    @property
    def max_words(self) -> int:
        """The most words, or word pieces, of a text; markers are not counted.

        Raises:
            BundleError: the file sets no limit.
        """
        cut = self._backend.truncation
        if cut is None:
            raise BundleError("this tokenizer.json does not truncate long texts: expected a limit, `truncation`")
        return int(cut["max_length"]) - self._backend.num_special_tokens_to_add(is_pair=False)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode texts.

        Args:
            texts: the texts.

        Raises:
            InputError: a text is not a valid string or contains no word; the message names the first such text.
        """
        texts, encodings = self._encodings(texts)
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        ids = np.zeros((len(encodings), int(lengths.max(initial=0))), np.int64)
        for row, encoding in zip(ids, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return Tokens(ids, lengths, tuple(_words(text, e) for text, e in zip(texts, encodings, strict=True)))

    def check_queries(self, texts: Sequence[str]) -> None:
        """Check that every query has at least one word of the vocabulary; any ranking would be arbitrary without one.

        Args:
            texts: the queries.

        Raises:
            InputError: no word of a query is in the vocabulary, or a text cannot be encoded.
        """
        for text, encoding in zip(*self._encodings(texts), strict=True):
            words = zip(encoding.tokens, encoding.special_tokens_mask, strict=True)
            if all(marker or word == self._unknown for word, marker in words):
                raise InputError(
                    f"no word of the query {text[:40]!r} is in the model's vocabulary of {self.vocabulary_size} words; "
                    "use words the model was trained on"
                )

    def _encodings(self, texts: Sequence[str]) -> tuple[list[str], list[Any]]:
        """The texts as passed to the library, and the library's encoding of each."""
        texts = [self._checked(text, index) for index, text in enumerate(texts)]
        encodings = self._backend.encode_batch(texts)
        for index, encoding in enumerate(encodings):
            if all(encoding.special_tokens_mask):
                raise InputError(f"text {index} ({texts[index][:40]!r}) is empty: expected at least one word")
        return texts, encodings

    def _checked(self, text: str, index: int) -> str:
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}: expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} is not valid Unicode ({error})") from None
        # If the file composes characters, it is done here first: the library's offsets would be wrong otherwise.
        return unicodedata.normalize("NFC", text) if self._composes else text


def _words(text: str, encoding: Any) -> tuple[str, ...]:
    inner = (text[start:end] for start, end in encoding.offsets[1:-1])
    return (encoding.tokens[0], *inner, encoding.tokens[-1])
