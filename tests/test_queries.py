"""Queries in all their forms, and what the model does not understand of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import InputError, Match, Ranking, Retriever
from camp_sdk.runtime.messages import visible
from tests.helpers.command import Camp
from tests.helpers.manifests import put, rewrite

QUERY = "a red circle"
Features = NDArray[np.float32]


@pytest.mark.parametrize(
    "queries",
    [
        (QUERY, "star"),
        np.array([QUERY, "star"]),
        np.array([QUERY, "star"], object),
        [np.str_(QUERY), np.str_("star")],
    ],
    ids=["tuple", "array", "objects", "numpy's strings"],
)
def test_several_queries_in_other_forms(feature_retriever: Retriever, features: Features, queries: Any) -> None:
    assert feature_retriever.rank(queries, features) == feature_retriever.rank([QUERY, "star"], features)


def test_a_tuple_of_one_query_is_several_queries(feature_retriever: Retriever, features: Features) -> None:
    assert feature_retriever.rank((QUERY,), features) == [feature_retriever.rank(QUERY, features)]


@pytest.mark.parametrize("queries", [(), np.array([], str), [], np.array([], object)])
def test_no_queries_in_other_forms(feature_retriever: Retriever, features: Features, queries: Any) -> None:
    with pytest.raises(InputError, match="expected a string, or a list of at least one string"):
        feature_retriever.rank(queries, features)


@pytest.mark.parametrize("queries", [(QUERY, 5), np.array([1, 2]), [[QUERY]], np.array([[QUERY]])])
def test_queries_that_are_no_texts(feature_retriever: Retriever, features: Features, queries: Any) -> None:
    gallery = feature_retriever.encode_images(features)
    with pytest.raises(InputError, match="expected a string, or a list of strings"):
        feature_retriever.rank(queries, gallery)


@pytest.mark.parametrize(
    ("query", "unknown"),
    [
        (QUERY, ()),
        ("a red zebra", ("zebra",)),
        ("a Zebra and a quux, zebra!", ("Zebra", "quux", "zebra")),
        ("zebra red zebra", ("zebra",)),
        ("red <unk> circle", ("<", "unk", ">")),
        ("red " * 60 + "zebra", ()),  # beyond the cut, where nothing is read
    ],
)
def test_a_ranking_names_what_was_not_understood(
    feature_retriever: Retriever, features: Features, query: str, unknown: tuple[str, ...]
) -> None:
    ranking = feature_retriever.rank(query, features)
    assert isinstance(ranking, Ranking)
    assert ranking.unknown_words == unknown
    both = feature_retriever.rank([QUERY, query], features)
    assert [one.unknown_words for one in both] == [(), unknown]
    assert feature_retriever.rank(query, features, shortlist=5).unknown_words == unknown


def test_an_image_as_a_query_has_no_unknown_words(feature_retriever: Retriever, features: Features) -> None:
    assert feature_retriever.rank(features[0], [QUERY, "a red zebra"]).unknown_words == ()


def test_an_explanation_shows_the_unknown_word(feature_retriever: Retriever, features: Features) -> None:
    words = feature_retriever.explain("a RED zebra <end>", features[0]).words
    assert words == ("<start>", "a", "RED", "<unk>", "<unk>", "<unk>", "<unk>", "<end>")


@pytest.fixture
def with_stop_words(bundle_copy: Path) -> Path:
    """A bundle in whose training captions "a" and "red" were frequent."""
    return rewrite(bundle_copy, put(["a", "red"], "tokenizer", "stop_words"))


def test_a_query_that_is_unknown_but_for_frequent_words(with_stop_words: Path, features: Features) -> None:
    """A score of 0.9999 for "a zebra" says that most pictures have an "a" in their captions."""
    with Retriever(with_stop_words, "onnxruntime") as retriever:
        for query in ("a zebra", "a red zebra", "A Red quux zebra"):
            with pytest.raises(InputError, match=r"of the query .* the model knows only a.*, which most pictures have"):
                retriever.rank(query, features)
            with pytest.raises(InputError, match="the model knows only"):
                retriever.explain(query, features[0])
        for query in ("a red", "red", "a star", "zebra star"):  # all of it is known, or something that tells them apart
            assert len(retriever.rank(query, features)) == 5


def test_camp_rank_names_unknown_words(camp: Camp, picture_bundle: Path, scenes: Path) -> None:
    images = ("--images", scenes / "test", "--query", "a red zebra\x1b[31m", "--query", QUERY)
    done = camp("rank", picture_bundle, *images, "--json")
    assert [ranking["unknown_words"] for ranking in json.loads(done.out)["rankings"]] == [
        ["zebra", "\x1b[", "31m"],
        [],
    ]
    done = camp("rank", picture_bundle, *images)
    assert [line for line in done.err.splitlines() if "vocabulary" in line] == [
        r"not in the model's vocabulary: zebra, \x1b[, 31m"
    ]


def test_a_match_is_a_mapping(feature_retriever: Retriever, features: Features) -> None:
    (match,) = feature_retriever.rank(QUERY, features, top_k=1)
    assert "score" in match
    assert 0 not in match
    assert list(match) == ["corpus_id", "score", "logit", "rank", "document", "key", "metadata"]
    assert json.loads(json.dumps(dict(match))) == {**match}
    assert Match(**match) == match
    assert len({match, Match(**match)}) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines", r"two\nlines"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("exe.\u202egpj", r"exe.\u202egpj"),
        ("\u2066isolated\u2069", r"\u2066isolated\u2069"),
        ("line\u2028separator", r"line\u2028separator"),
        ("half \ud800", r"half \ud800"),
        ("caf\xe9 \u732b \U0001f468\u200d\U0001f469", "caf\xe9 \u732b \U0001f468\u200d\U0001f469"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("command", ["rank", "encode", "eval"])
def test_threads_and_memory_of_commands(
    camp: Camp, feature_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """They reach the retriever, which the stand-in refuses to make."""
    given: list[tuple[Any, ...]] = []

    def retriever(*arguments: Any) -> None:
        given.append(arguments)
        raise InputError("enough")

    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "test_ims.npy", np.ones((2, 5, 12), np.float32))
    (data / "test_caps.txt").write_text("a star\na circle\n")
    monkeypatch.setattr(f"camp_sdk.commands.{command}.Retriever", retriever)
    arguments = {
        "rank": ("--images", data / "test_ims.npy", "--query", QUERY),
        "encode": ("--images", data / "test_ims.npy", "--output", tmp_path / "gallery"),
        "eval": ("--data", data),
    }[command]
    for size, expected in (("512M", 512 << 20), ("2G", 2 << 30), ("1000", 1000), ("64KiB", 64 << 10)):
        done = camp(command, feature_bundle, *arguments, "--threads", "3", "--memory-budget", size)
        assert (done.code, given.pop()) == (1, (feature_bundle, "auto", "float32", 3, expected))
    for wrong in ("much", "0", "-1M", "1.5G", ""):
        done = camp(command, feature_bundle, *arguments, "--memory-budget", wrong)
        assert (done.code, "expected a size such as 512M or 2G" in done.err) == (2, True)
    assert camp(command, feature_bundle, *arguments, "--threads", "0").code == 2
