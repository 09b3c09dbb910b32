"""Turn captions into indices of words or word pieces, by the bundle's tokenizer.json.

The file is in the format of Hugging Face's `tokenizers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.manifest import EXPORT_AGAIN, TOKENIZER_FILE
from camp_sdk.runtime.tokenizer_file import checked_tokenizer

UNKNOWN = "<unk>"
MAX_CHARACTERS = 10_000  # of a text; the rules of NLTK take 0.2 s for as many


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Args:
        ids: word indices [T, N], int64, padded with 0.
        lengths: the number of words of each text [T], int64, both markers counted.
        words: the words of each text, markers included.
        unknown: for each text, the places of the words that are not in the vocabulary.
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    words: tuple[tuple[str, ...], ...]
    unknown: tuple[tuple[int, ...], ...]

    def unknown_words(self, text: int) -> tuple[str, ...]:
        """The words of a text that are not in the vocabulary, each once, as in the text.

        Args:
            text: the index of the text.
        """
        return tuple(dict.fromkeys(self.words[text][place] for place in self.unknown[text]))

    def shown(self, text: int) -> tuple[str, ...]:
        """The words of a text as the network sees them: markers included, and ``<unk>`` for each unknown one.

        Args:
            text: the index of the text.
        """
        unknown = set(self.unknown[text])
        return tuple(UNKNOWN if place in unknown else word for place, word in enumerate(self.words[text]))

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
        content: the content of tokenizer.json.
        name: the file's name, for messages.
        stop_words: the words, or word pieces, of more than half of the captions that the network was trained on.

    Raises:
        BundleError: the content is not a tokenizer that the export writes.
    """

    def __init__(self, content: str | bytes, name: str = "tokenizer.json", stop_words: Sequence[str] = ()) -> None:
        from tokenizers import Tokenizer as Backend  # imported here, so that importing camp_sdk stays fast
        from tokenizers.normalizers import NFC

        with _library_errors(f"{name} is not a tokenizer"):
            self._backend = Backend.from_str(checked_tokenizer(content))
        self._name, self._stop_words = name, frozenset(stop_words)
        self._backend.encode_special_tokens = True  # a marker typed in a text is treated as an ordinary word
        self._unknown = self._index_of_unknown()
        self._first = self._backend.num_special_tokens_to_add(is_pair=False) - 1  # the place of the first word: 0 or 1
        normaliser = self._backend.normalizer
        composes = normaliser is not None and normaliser.normalize_str("e\u0301") == "\xe9"
        self._compose = NFC() if composes else None

    @property
    def vocabulary_size(self) -> int:
        """The number of words, or word pieces, in the vocabulary."""
        return int(self._backend.get_vocab_size())

    @property
    def max_words(self) -> int:
        """The most words, or word pieces, of a text; markers are not counted."""
        return self.max_tokens - self._backend.num_special_tokens_to_add(is_pair=False)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text, markers counted."""
        truncation: Any = self._backend.truncation  # always set: the file was checked
        return int(truncation["max_length"])

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Encode texts.

        Args:
            texts: the texts.

        Raises:
            InputError: a text is not a valid string, contains no word or is too long; the message names the first such
                text.
        """
        texts, encodings = self._encodings(texts)
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        ids = np.zeros((len(encodings), int(lengths.max(initial=0))), np.int64)
        for row, encoding in zip(ids, encodings, strict=True):
            row[: len(encoding.ids)] = encoding.ids
        words = tuple(_words(text, encoding, self._first) for text, encoding in zip(texts, encodings, strict=True))
        places = (range(self._first, len(encoding.ids) - 1) for encoding in encodings)  # without the markers
        unknown = tuple(
            tuple(place for place in inner if encoding.ids[place] == self._unknown)
            for inner, encoding in zip(places, encodings, strict=True)
        )
        return Tokens(ids, lengths, words, unknown)

    def check_queries(self, texts: Sequence[str]) -> None:
        """Check that every query has words that distinguish pictures.

        A ranking would be arbitrary, though its scores may look certain, if no word of the query is in the vocabulary,
        or if the only ones that are occur in most captions ("a", if the query is "a zebra").

        Args:
            texts: the queries.

        Raises:
            InputError: a query has no such word, or a text cannot be encoded.
        """
        for text, encoding in zip(*self._encodings(texts), strict=True):
            inner = list(zip(encoding.tokens, encoding.ids, strict=True))[self._first : -1]
            known = {token for token, index in inner if index != self._unknown}
            if not known:
                raise InputError(
                    f"no word of the query {text[:40]!r} is in the model's vocabulary of {self.vocabulary_size} words; "
                    "use words the model was trained on"
                )
            if known <= self._stop_words and any(index == self._unknown for _, index in inner):
                raise InputError(
                    f"of the query {text[:40]!r} the model knows only {', '.join(sorted(known))}, which most pictures "
                    "have in their captions; use words the model was trained on"
                )

    def _index_of_unknown(self) -> int | None:
        """The index that stands for what is not in the vocabulary, such as that of <unk>."""
        name = getattr(self._backend.model, "unk_token", None)
        index: int | None
        if name is None:  # pieces with scores, of which the library shows the text instead
            index = json.loads(self._backend.to_str())["model"].get("unk_id")
        else:
            index = self._backend.token_to_id(name)
        return index

    def _encodings(self, texts: Sequence[str]) -> tuple[list[str], list[Any]]:
        """The texts as passed to the library, and the library's encoding of each."""
        texts = [self._checked(text, index) for index, text in enumerate(texts)]
        with _library_errors(f"{self._name} cannot encode these texts"):
            encodings = self._backend.encode_batch(texts)
        for index, encoding in enumerate(encodings):
            if all(encoding.special_tokens_mask):
                raise InputError(f"text {index} ({texts[index][:40]!r}) is empty: expected at least one word")
        return texts, encodings

    def _checked(self, text: str, index: int) -> str:
        if not isinstance(text, str):
            raise InputError(f"text {index} is a {type(text).__name__}: expected a string")
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"text {index} has {len(text)} characters: expected at most {MAX_CHARACTERS}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {index} is not valid Unicode ({error})") from None
        # If the file composes characters, it is done here first: the library's offsets would be wrong otherwise. By the
        # library, because Python may know a newer Unicode, and order marks that the library leaves as they are.
        return str(self._compose.normalize_str(text)) if self._compose else text


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle.

    Args:
        bundle: the bundle.

    Raises:
        BundleError: its tokenizer.json is not one that the export writes, or has words that the text graph does not
            know.
    """
    file, known = bundle.file(TOKENIZER_FILE), bundle.manifest.vocabulary
    tokenizer = Tokenizer(file.read(), str(file.path), bundle.manifest.stop_words)
    if known is not None and tokenizer.vocabulary_size > known:
        raise BundleError(
            f"{file.path} has {tokenizer.vocabulary_size} words, the text graph knows {known}; {EXPORT_AGAIN}"
        )
    return tokenizer


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Turn everything that the library raises into one error."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception for parse errors; a panic is not even an Exception
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise BundleError(f"{what} ({reason}); export the bundle again") from None


def _words(text: str, encoding: Any, first: int) -> tuple[str, ...]:
    inner = (text[start:end] for start, end in encoding.offsets[first:-1])
    return (*encoding.tokens[:first], *inner, encoding.tokens[-1])
