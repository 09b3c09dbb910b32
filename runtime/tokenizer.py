"""Captions to word indices, by the bundle's tokenizer.json (Hugging Face `tokenizers` format)."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.errors import BundleError, InputError

UNKNOWN = "<unk>"
SPECIAL_COUNT = 4  # <pad> 0, <start> 1, <end> 2, <unk> 3


@dataclass(frozen=True)
class Tokens:
    """Encoded texts: ids [T, N] int64 padded with 0, lengths [T] int64 (both markers counted), words as text."""

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    words: tuple[tuple[str, ...], ...]


class Tokenizer:
    """Lower-cases, splits, cuts at the limit and wraps in `<start>` ... `<end>`, as the file says.

    Raises BundleError if the file is not a tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Backend  # here: importing camp_sdk must stay cheap

        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every parse error
            raise BundleError(f"{path} is not a tokenizer ({error}); export the bundle again") from None
        self._backend.no_padding()
        normaliser = self._backend.normalizer
        self._composes = normaliser is not None and normaliser.normalize_str("e\u0301") == "\xe9"

    @property
    def vocabulary_size(self) -> int:
        return int(self._backend.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode texts; InputError names the first that is no valid string, or holds no word at all."""
        texts = [self._checked(text, index) for index, text in enumerate(texts)]
        encodings = self._backend.encode_batch(texts)
        for index, encoding in enumerate(encodings):
            if len(encoding.ids) <= 2:
                raise InputError(f"text {index} ({texts[index][:40]!r}) is empty: expected at least one word")
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        ids = np.zeros((len(encodings), int(lengths.max(initial=0))), np.int64)
        for row, encoding in zip(ids, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        return Tokens(ids, lengths, tuple(_words(text, e.offsets) for text, e in zip(texts, encodings, strict=True)))

    def check_queries(self, texts: Sequence[str]) -> None:
        """InputError if not one word of a query is in the vocabulary: every picture would be an arbitrary answer."""
        for text, ids in zip(texts, self.encode(texts).ids, strict=True):
            if (ids < SPECIAL_COUNT).all():
                raise InputError(
                    f"no word of the query {text!r} is in the model's vocabulary of {self.vocabulary_size} words; "
                    "use words the model was trained on"
                )

    def _checked(self, text: str, index: int) -> str:
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}: expected a string")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} is not valid Unicode ({error})") from None
        # Where the file composes, it is done here: the library's offsets would be wrong.
        return unicodedata.normalize("NFC", text) if self._composes else text


def _words(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    inner = (text[start:end] for start, end in offsets[1:-1])
    return ("<start>", *inner, "<end>")
