"""Recall, median rank and rsum against plain loops, with ties."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from camp_sdk import Direction, InputError, Metrics, evaluate_matrix
from camp_sdk.metrics import image_to_text_ranks, mean_metrics, text_to_image_ranks

Case = tuple[NDArray[np.float32], NDArray[np.int64]]
repeatable = settings(deadline=None, derandomize=True, database=None)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A matrix of few distinct integers, so that most rows hold ties, with captions in any order."""
    images, each = draw(st.integers(1, 7)), draw(st.sampled_from([1, 5]))
    texts = images * each
    values = draw(st.lists(st.integers(-2, 2), min_size=images * texts, max_size=images * texts))
    owners = draw(st.permutations([index // each for index in range(texts)]))
    return np.array(values, np.float32).reshape(images, texts), np.array(owners)


def rank_of(own: float, others: list[float]) -> float:
    rank = 1.0
    for other in others:
        if other > own:
            rank += 1
        elif other == own:
            rank += 0.5
    return rank


def text_ranks(similarity: NDArray[np.float32], owner: NDArray[np.int64]) -> list[float]:
    images, texts = similarity.shape
    return [
        rank_of(similarity[owner[t], t], [similarity[i, t] for i in range(images) if i != owner[t]])
        for t in range(texts)
    ]


def image_ranks(similarity: NDArray[np.float32], owner: NDArray[np.int64]) -> list[float]:
    images, texts = similarity.shape
    ranks = []
    for i in range(images):
        best = max(similarity[i, t] for t in range(texts) if owner[t] == i)
        ranks.append(rank_of(best, [similarity[i, t] for t in range(texts) if owner[t] != i]))
    return ranks


def summary(ranks: list[float]) -> Direction:
    r1, r5, r10 = (100 * sum(rank <= k for rank in ranks) / len(ranks) for k in (1, 5, 10))
    return Direction(r1, r5, r10, statistics.median(ranks))


@repeatable
@given(cases())
def test_metrics_equal_plain_loops(case: Case) -> None:
    metrics = evaluate_matrix(*case)
    assert metrics == Metrics(summary(text_ranks(*case)), summary(image_ranks(*case)))


@repeatable
@given(cases())
def test_ranks_equal_plain_loops(case: Case) -> None:
    assert text_to_image_ranks(*case).tolist() == text_ranks(*case)
    assert image_to_text_ranks(*case).tolist() == image_ranks(*case)


@repeatable
@given(cases())
def test_a_monotone_change_of_the_scores_changes_nothing(case: Case) -> None:
    similarity, owner = case
    assert evaluate_matrix(3 * similarity + 1, owner) == evaluate_matrix(similarity, owner)


def test_an_example_worked_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.3], [0.8, 0.2, 0.5], [0.1, 0.2, 0.4]], np.float32)
    metrics = evaluate_matrix(similarity, np.arange(3))
    # Captions find their image at ranks 1, 1.5 (tied with image 2) and 2; images find their caption at 1, 3 and 1.
    assert text_to_image_ranks(similarity, np.arange(3)).tolist() == [1, 1.5, 2]
    assert image_to_text_ranks(similarity, np.arange(3)).tolist() == [1, 3, 1]
    assert metrics.text_to_image == Direction(100 / 3, 100, 100, 1.5)
    assert metrics.image_to_text == Direction(200 / 3, 100, 100, 1)
    assert metrics.rsum == 500


def test_the_best_of_an_images_captions_counts() -> None:
    similarity = np.array([[0, 5, 1, 2], [4, 0, 0, 3]], np.float32)
    assert image_to_text_ranks(similarity, np.array([0, 0, 1, 1])).tolist() == [1, 2]


@pytest.mark.parametrize("each", [1, 5])
def test_saturated_scores_do_not_flatter(each: int) -> None:
    images = 30
    metrics = evaluate_matrix(np.ones((images, images * each), np.float32), np.repeat(np.arange(images), each))
    others = (images - 1) * each
    assert metrics == Metrics(Direction(0, 0, 0, 1 + (images - 1) / 2), Direction(0, 0, 0, 1 + others / 2))


@pytest.mark.parametrize(("tied", "rank"), [(0, 1), (1, 1.5), (2, 2), (8, 5), (9, 5.5)])
def test_ties_count_half(tied: int, rank: float) -> None:
    column = np.array([1.0] * (tied + 1) + [0.0] * (11 - tied), np.float32)
    similarity = np.stack([column] * 12, axis=1)
    assert text_to_image_ranks(similarity, np.arange(12))[0] == rank


def test_a_perfect_model_reaches_600() -> None:
    assert evaluate_matrix(np.eye(4, dtype=np.float32), np.arange(4)).rsum == 600


def test_folds_are_averaged_figure_by_figure() -> None:
    first = Metrics(Direction(10, 20, 30, 1), Direction(0, 50, 100, 7))
    second = Metrics(Direction(30, 40, 50, 4), Direction(100, 50, 0, 2))
    assert mean_metrics([first, second]) == Metrics(Direction(20, 30, 40, 2.5), Direction(50, 50, 50, 4.5))


def test_as_dict_is_what_the_command_prints() -> None:
    printed = evaluate_matrix(np.eye(2, dtype=np.float32), np.arange(2)).as_dict()
    perfect = {"r1": 100, "r5": 100, "r10": 100, "median_rank": 1}
    assert printed == {"text_to_image": perfect, "image_to_text": perfect, "rsum": 600}


@pytest.mark.parametrize(
    ("shape", "owner"),
    [
        pytest.param((3, 4), [0, 1, 2], id="too few captions"),
        pytest.param((3, 3), [0, 1, 1], id="an image without a caption"),
        pytest.param((3, 3), [0, 1, 3], id="an image that is not there"),
        pytest.param((3, 3), [0, 1, -1], id="a negative image"),
        pytest.param((3,), [0, 1, 2], id="one axis"),
        pytest.param((3, 3, 3), [0, 1, 2], id="three axes"),
        pytest.param((0, 0), [], id="nothing"),
    ],
)
def test_wrong_shapes_are_refused(shape: tuple[int, ...], owner: list[int]) -> None:
    with pytest.raises(InputError):
        evaluate_matrix(np.zeros(shape, np.float32), np.array(owner, np.int64))


def test_lists_are_taken() -> None:
    assert evaluate_matrix([[2.0, 0.0], [1.0, 3.0]], [0, 1]) == evaluate_matrix(  # type: ignore[arg-type]  # lists
        np.array([[2.0, 0.0], [1.0, 3.0]]), np.array([0, 1])
    )


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="NaN"):
        evaluate_matrix(np.array([[math.nan, 1], [0, 1]], np.float32), np.arange(2))
