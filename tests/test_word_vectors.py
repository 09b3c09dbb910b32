"""Files of word vectors: what is read, what is refused, and that a run starts from them."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camp_sdk import BundleError, InputError
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.vocabulary import SPECIALS, vocabulary_of
from camp_sdk.export.training.run import Run, run_training
from camp_sdk.export.training.word_vectors import MAX_LINE, read_vectors, width_of
from tests.helpers.training import run_until_killed, tiny_config, write_features

WORDS = {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "red": 4, "blue": 5, "thing": 6}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def precomputed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_features(tmp_path_factory.mktemp("tiny_precomp"))


def text_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "vectors.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("header", ["", "4 2\n"], ids=["GloVe", "word2vec"])
@pytest.mark.parametrize("end", ["\n", " \n", "\r\n"], ids=["plain", "a space", "Windows"])
def test_words_of_the_vocabulary_are_read_and_others_skipped(tmp_path: Path, header: str, end: str) -> None:
    lines = ["red 0.5 -1e-1", "zebra 9 9", "thing 2 3", "<unk> 0 0.25"]
    path = text_file(tmp_path, header + "".join(line + end for line in lines))
    table = read_vectors(path, WORDS)
    assert width_of(path) == 2
    assert table.rows.tolist() == [4, 6, 3]
    assert np.array_equal(table.vectors, np.float32([[0.5, -0.1], [2, 3], [0, 0.25]]))


def test_a_word_may_hold_spaces_and_the_first_of_two_equal_words_counts(tmp_path: Path) -> None:
    path = text_file(tmp_path, "red 1 2\n. . . 3 4\nred 5 6\nr\u00a0d 7 8\n")
    assert read_vectors(path, WORDS | {". . .": 7}).vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1 is '': expected a word and its numbers"),
        ("red\n", ":1 is 'red\\n': expected a word and its numbers"),
        ("red 1 2\nblue 3\n", ":2 has 2 fields: expected a word and 2 numbers"),
        ("red 1 2\n\nblue 3 4\n", ":2 has 1 fields: expected a word and 2 numbers"),
        ("red 1 2\nblue 3 4 5\n", ":2 has 4 fields: expected a word and 2 numbers"),
        ("2 3\nred 1 2\nblue 3 4\n", ":2 has 3 fields: expected a word and 3 numbers"),
        ("red 1 x\n", ":1 holds no number (could not convert string to float: 'x')"),
        ("red 1 nan\n", ":1 is NaN or infinite"),
        ("red 1 1e300\n", ":1 is NaN or infinite"),
        ("red 1 2\nblue 3", ":2 has 2 fields"),
        ("3 2\nred 1 2\nblue 3 4\n", " has 2 words, its first line says 3: copy it again"),
        (b"red 1 2\nbl\xffe 3 4\n", ":2 is not UTF-8 text"),
        ("red 1 2\n" + "x" * (MAX_LINE + 9), f":2 is longer than {MAX_LINE} bytes"),
    ],
    ids=lambda value: "",
)
def test_a_broken_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = text_file(tmp_path, text)
    with pytest.raises(BundleError, match=re.escape(f"{path}{message}")):
        read_vectors(path, WORDS)


def test_a_text_without_a_word_of_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`word_vectors` .* has none of the 7 words of the vocabulary"):
        read_vectors(text_file(tmp_path, "Red 1 2\n"), WORDS)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    line = " ".join(["0.125"] * 50)
    path = text_file(tmp_path, "".join(f"w{k} {line}\n" for k in range(20_000)) + f"red {line}\n")
    tracemalloc.start()
    read_vectors(path, WORDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 6_000_000
    assert peak < 1_000_000  # a line, its fields, and one vector


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_holds_a_row_for_each_word(tmp_path: Path, dtype: Any) -> None:
    vectors = np.arange(21, dtype=dtype).reshape(7, 3)
    np.save(tmp_path / "v.npy", vectors)
    table = read_vectors(tmp_path / "v.npy", WORDS)
    assert width_of(tmp_path / "v.npy") == 3
    assert table.rows.tolist() == list(range(7))
    assert np.array_equal(table.vectors, vectors.astype(np.float32))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.ones((6, 3)),
            InputError,
            r"v\.npy has 6 rows, the vocabulary 7 words: expected one row for",
        ),
        (np.ones((7, 3), int), BundleError, r"is int64 \(7, 3\): expected floats \[vocabulary, width\]"),
        (np.ones(7), BundleError, r"is float64 \(7,\): expected floats"),
        (np.full((7, 3), np.inf), BundleError, "row 0 is NaN or infinite"),
        (np.array([["a"]], object), BundleError, "cannot be opened as a .npy file"),
    ],
    ids=["rows", "whole numbers", "one axis", "infinite", "pickled"],
)
def test_arrays_that_are_refused(tmp_path: Path, array: Any, error: type[Exception], message: str) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=array.dtype == object)
    with pytest.raises(error, match=message):
        read_vectors(tmp_path / "v.npy", WORDS)


@pytest.mark.parametrize("name", ["v.npy", "v.txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=re.escape(str(tmp_path / name))):
        width_of(tmp_path / name)


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`word_vectors` .*v\.bin: expected a file that ends in \.npy or \.txt"):
        width_of(tmp_path / "v.bin")


# In a run


def test_a_run_starts_from_the_vectors_of_a_text(
    precomputed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = text_file(tmp_path, "red 1 2 3 4 5\nzebra 1 1 1 1 1\nblue -1 -2 -3 -4 -5\n<unk> 7 7 7 7 7\n")
    still = {"learning_rate": 1e-12, "weight_decay": 0.0, "word_width": 0}
    config = tiny_config(precomputed, tmp_path / "run", epochs=1, word_vectors=path, **still)
    with_file = load_checkpoint(run_training(config, tmp_path))
    vocabulary = vocabulary_of(with_file[1].tokenizer)
    words = len(vocabulary) - len(SPECIALS)
    assert f"vectors.txt: vectors of 2 of the {words} words" in capsys.readouterr().err.replace("\n", "")
    found = with_file[0].text_encoder.embed.weight
    assert with_file[1].model.word_width == 5
    for word, sign in (("red", 1), ("blue", -1)):
        # Twenty steps of at most 1e-12.
        torch.testing.assert_close(found[vocabulary[word]], sign * torch.arange(1.0, 6.0), rtol=0, atol=1e-9)
    plain = replace(config, word_vectors=None, word_width=5, output=tmp_path / "plain")
    without = load_checkpoint(run_training(plain, tmp_path))[0].text_encoder.embed.weight
    others = [row for word, row in vocabulary.items() if word not in ("red", "blue", "<unk>")]
    torch.testing.assert_close(found[others], without[others], rtol=0, atol=1e-9)
    assert with_file[1].training["word_vectors"] == ".txt"  # no path of this machine


def test_the_width_is_that_of_the_file(precomputed: Path, tmp_path: Path) -> None:
    path = text_file(tmp_path, "red 1 2 3\n")
    with pytest.raises(InputError, match=r"`word_width` 8: .*vectors\.txt has 3, which is fixed: leave the option out"):
        Run(tiny_config(precomputed, tmp_path / "run", word_vectors=path))


def test_an_array_of_another_vocabulary_is_refused_before_training(precomputed: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones((5, 8)))
    with pytest.raises(InputError, match=r"v\.npy has 5 rows, the vocabulary \d+ words"):
        run_training(tiny_config(precomputed, tmp_path / "run", word_vectors=tmp_path / "v.npy"), tmp_path)
    assert not (tmp_path / "run").exists()


def test_resuming_with_other_vectors_is_refused(precomputed: Path, tmp_path: Path) -> None:
    path = text_file(tmp_path, "red 1 2 3\n")
    config = tiny_config(precomputed, tmp_path / "run", word_vectors=path, word_width=0, captions="one")
    run_until_killed(config, tmp_path, config.output, 5)
    path.write_text("red 1 2 4\n")
    with pytest.raises(InputError, match="was started with other `word_vectors` than this file"):
        run_training(replace(config, resume=True), tmp_path)
    path.write_text("red 1 2 3\n")
    assert run_training(replace(config, resume=True), tmp_path).is_file()
