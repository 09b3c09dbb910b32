"""The losses against their equations, and the cheap hardest-negative loss against the one over all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from camp_sdk.export.network.camp import Scorer, Tensors
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.networks import NETWORKS
from camp_sdk.export.training import losses
from camp_sdk.export.training.losses import (
    DRIFT,
    Encoded,
    choose_negatives,
    contrastive_loss,
    drift_loss,
    margin_ranking,
    matching_bce,
    pair_loss,
    score_blocks,
    score_pairs,
    softmax_loss,
)
from tests.helpers.tiny import FEATURE_WIDTH, tiny_model

BATCH = 6
IMAGE_OF_CAPTION = torch.tensor([0, 0, 1, 2, 3, 4])  # the first two captions share their image
MATCHES = IMAGE_OF_CAPTION[:, None] == IMAGE_OF_CAPTION[None, :]
# Float64: 1 - p at p = 1 - 1e-6 loses six digits of sixteen in the equation written out.
# Float32: sums in another order.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}

every_variant = pytest.mark.parametrize("variant", NETWORKS)
both_precisions = pytest.mark.parametrize("dtype", TOLERANCE)


class Bilinear:
    """Stands in for a scorer: the logit of image i and text t is table[i, t], read with one-hot vectors."""

    activation = "sigmoid"
    axes: ClassVar[dict[str, str]] = {"image.V": "I d", "text.T": "T d"}

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def __call__(self, image: Tensors, text: Tensors) -> Tensor:
        return image["image.V"] @ self.table @ text["text.T"].T

    def encoded(self) -> Encoded:
        one_hot = torch.eye(len(self.table), dtype=self.table.dtype)
        return Encoded({"image.V": one_hot}, {"text.T": one_hot}, torch.arange(1, len(one_hot) + 1))


def encoded_batch(model: Camp, dtype: torch.dtype) -> Encoded:
    """Six aligned pairs; tokens and features are fixed, captions two to seven words long."""
    rng = np.random.default_rng(4)
    features = torch.from_numpy(rng.standard_normal((5, 6, FEATURE_WIDTH)))[IMAGE_OF_CAPTION].to(dtype)
    tokens = torch.from_numpy(rng.integers(1, model.config.vocabulary_size, (BATCH, 7)))
    lengths = torch.tensor([7, 3, 2, 5, 6, 4])
    return Encoded(model.encode_images(features), model.encode_texts(tokens, lengths), lengths)


def written_out_bce(matching: Tensor, wrong_text: Tensor, wrong_image: Tensor) -> Tensor:
    """The loss of section 3.5, letter by letter: probabilities, clamped to [1e-6, 1 - 1e-6], and their logarithms."""
    m, m_text, m_image = (x.sigmoid().clamp(1e-6, 1 - 1e-6) for x in (matching, wrong_text, wrong_image))
    losses = -(m.log() + (1 - m_text).log()) - (m.log() + (1 - m_image).log())
    return losses.mean()


def written_out_ranking(matching: Tensor, wrong_text: Tensor, wrong_image: Tensor) -> Tensor:
    """The margin ranking loss of both directions, pair by pair, with a margin of 0.2."""
    zero = torch.zeros_like(matching)
    return (torch.maximum(zero, 0.2 - matching + wrong_text) + torch.maximum(zero, 0.2 - matching + wrong_image)).mean()


def full_loss(model: Camp, encoded: Encoded) -> Tensor:
    """The hardest-negative loss read off the full matrix [B, B], every pair with its gradient."""
    logits = model.scorer(encoded.image, encoded.text)
    wrong = logits.masked_fill(MATCHES, -math.inf)
    written_out = written_out_bce if model.scorer.activation == "sigmoid" else written_out_ranking
    return written_out(logits.diagonal(), wrong.max(1).values, wrong.max(0).values)


def test_matching_bce_is_the_equation_with_clamped_probabilities() -> None:
    logits = torch.tensor([[-50.0, -14.0, -3.0, 0.0, 2.0, 13.0, 40.0]] * 3, dtype=torch.float64)
    three = logits[0], logits[1].flip(0), logits[2].roll(2)
    assert abs(matching_bce(*three) - written_out_bce(*three)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("logit", [20.0, 200.0, -200.0])
def test_matching_bce_stops_at_the_clamp(logit: float) -> None:
    saturated, edge = torch.tensor([logit]), torch.tensor([math.copysign(math.log(1e6 - 1), logit)])
    calm = torch.zeros(1)
    assert matching_bce(saturated, calm, calm) == pytest.approx(float(matching_bce(edge, calm, calm)), rel=1e-5)


def test_margin_ranking_is_the_equation_written_out() -> None:
    m, t, i = torch.tensor([0.9, 0.2, -0.5]), torch.tensor([0.75, 0.3, -0.8]), torch.tensor([0.1, 0.0, 0.4])
    # Violations by hand: texts 0.05, 0.3, 0; images 0, 0, 1.1; float32.
    assert float(margin_ranking(m, t, i)) == pytest.approx((0.05 + 0.3 + 1.1) / 3, rel=1e-6)
    assert float(margin_ranking(m, t, i)) == pytest.approx(float(written_out_ranking(m, t, i)), rel=1e-6)


def test_margin_ranking_of_several_negatives_keeps_each_with_its_pair() -> None:
    m, nothing = torch.tensor([1.0, 0.0]), torch.full((2,), -math.inf)
    wrong = torch.tensor([[1.1, 0.9], [-1.0, 0.1]])
    assert float(margin_ranking(m, wrong.flatten(), nothing)) == pytest.approx((0.3 + 0.1 + 0 + 0.3) / 4, rel=1e-6)


@both_precisions
@every_variant
def test_hardest_negative_loss_equals_the_loss_over_all_pairs(variant: str, dtype: torch.dtype) -> None:
    model = tiny_model(variant).to(dtype)
    encoded = encoded_batch(model, dtype)
    cheap, full = pair_loss(model.scorer, encoded, MATCHES, candidates=1), full_loss(model, encoded)
    torch.testing.assert_close(cheap, full, rtol=0, atol=TOLERANCE[dtype], check_dtype=False)


@both_precisions
@every_variant
def test_hardest_negative_gradient_equals_the_gradient_over_all_pairs(variant: str, dtype: torch.dtype) -> None:
    model = tiny_model(variant).to(dtype)
    weights = [w for name, w in model.named_parameters() if "global" not in name]
    cheap = torch.autograd.grad(pair_loss(model.scorer, encoded_batch(model, dtype), MATCHES), weights)
    full = torch.autograd.grad(full_loss(model, encoded_batch(model, dtype)), weights)
    for found, expected in zip(cheap, full, strict=True):
        torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_captions_of_the_same_image_are_never_negatives() -> None:
    table = torch.zeros(BATCH, BATCH).masked_fill(MATCHES, 9.0)  # as a negative, a match would cost 9 a pair
    stub = Bilinear(table)
    losses = [pair_loss(stub, stub.encoded(), MATCHES, candidates) for candidates in (1, 2, BATCH)]  # type: ignore[arg-type]  # stub
    nine, zero = torch.full((1,), 9.0), torch.zeros(1)
    expected = float(matching_bce(nine, zero, zero))
    assert [float(loss) for loss in losses] == pytest.approx(
        [expected] * 3, rel=1e-6
    )  # float32 mean of six equal terms


def test_the_hardest_negative_is_the_best_wrong_one_of_each_row_and_column() -> None:
    table = torch.tensor([[3.0, 2.0, -1.0], [0.5, 1.0, -2.0], [-3.0, 1.5, 4.0]])
    stub = Bilinear(table)
    loss = pair_loss(stub, stub.encoded(), torch.eye(3, dtype=torch.bool))  # type: ignore[arg-type]  # stub
    expected = matching_bce(table.diagonal(), torch.tensor([2.0, 0.5, 1.5]), torch.tensor([0.5, 2.0, -1.0]))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)  # the same float32 terms through one-hot products


@pytest.mark.parametrize("candidates", [1, 2, 4, 100])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_match_is_ever_chosen_as_a_negative(candidates: int, count: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(BATCH, BATCH).masked_fill(MATCHES, -math.inf)
    for _ in range(50):
        chosen = choose_negatives(logits, candidates, count)
        assert not MATCHES.gather(1, chosen).any()
        assert all(len(set(row)) == count for row in chosen.tolist())


def test_negatives_come_from_all_of_the_candidates_and_from_no_other() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[-math.inf, 5.0, 1.0, 4.0, 3.0], [2.0, -math.inf, 7.0, 1.0, 6.0]])
    rows = torch.cat([choose_negatives(logits, 3) for _ in range(200)], dim=1).T
    assert [set(column.tolist()) for column in rows.T] == [{1, 3, 4}, {0, 2, 4}]


def test_one_candidate_is_the_hardest() -> None:
    logits = torch.tensor([[-math.inf, 5.0, 1.0], [2.0, -math.inf, 7.0], [9.0, 8.0, -math.inf]])
    assert choose_negatives(logits, 1).tolist() == [[1], [2], [0]]


def test_as_many_candidates_as_negatives_are_the_hardest() -> None:
    logits = torch.tensor([[-math.inf, 5.0, 1.0, 3.0], [2.0, -math.inf, 7.0, 9.0]])
    assert [set(row) for row in choose_negatives(logits, 1, 2).tolist()] == [{1, 3}, {2, 3}]


def test_where_negatives_are_few_all_are_taken() -> None:
    logits = torch.tensor([[-math.inf, 5.0, -math.inf], [2.0, -math.inf, 7.0]])
    assert choose_negatives(logits, 1, 4).shape == (2, 1)
    assert choose_negatives(logits, 1, 4)[0].tolist() == [1]


def test_a_row_of_matches_alone_leaves_the_others_their_choice() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([[-math.inf] * 4, [2.0, -math.inf, 7.0, 9.0]])
    drawn = torch.cat([choose_negatives(logits, 3, 2) for _ in range(50)], dim=1)
    assert set(drawn[1].tolist()) == {0, 2, 3}
    assert choose_negatives(logits[:1], 3, 2).shape == (1, 1)


def test_a_pair_without_negatives_costs_no_more_than_its_own_terms() -> None:
    table = torch.tensor([[3.0, 2.0], [1.5, 4.0]], requires_grad=True)
    stub = Bilinear(table)
    loss = pair_loss(stub, stub.encoded(), torch.ones(2, 2, dtype=torch.bool))  # type: ignore[arg-type]  # stub
    floor = torch.full((2,), -math.inf)
    expected = matching_bce(table.diagonal(), floor, floor)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the same float32 terms
    loss.backward()
    assert table.grad is not None
    assert table.grad[0, 1] == table.grad[1, 0] == 0


def test_several_negatives_are_averaged() -> None:
    table = torch.tensor([[3.0, 2.0, -1.0, 0.0], [0.5, 1.0, -2.0, 0.7], [-3.0, 1.5, 4.0, 0.2], [2.5, 0.1, 0.3, 5.0]])
    stub = Bilinear(table)
    loss = pair_loss(stub, stub.encoded(), torch.eye(4, dtype=torch.bool), 1, 2)  # type: ignore[arg-type]  # stub
    texts = torch.tensor([[2.0, 0.0], [0.7, 0.5], [1.5, 0.2], [2.5, 0.3]])
    images = torch.tensor([[2.5, 0.5], [2.0, 1.5], [0.3, -1.0], [0.7, 0.2]])
    expected = matching_bce(table.diagonal(), texts, images)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)  # the same float32 terms through one-hot products


@every_variant
@torch.no_grad()
def test_aligned_scores_are_the_diagonal_of_the_cross_product(variant: str) -> None:
    model = tiny_model(variant).double()
    encoded = encoded_batch(model, torch.float64)
    image, text = encoded.image, encoded.text
    diagonal = model.scorer(image, text).diagonal()
    # Float64, the same sums batched otherwise.
    torch.testing.assert_close(score_pairs(model.scorer, image, text), diagonal, rtol=0, atol=1e-12)


def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2 images and 4 texts: the batch of six has several of each, the last smaller."""
    monkeypatch.setattr(losses, "BLOCK_IMAGES", 2)
    monkeypatch.setattr(losses, "BLOCK_TEXTS", 4)


@every_variant
@torch.no_grad()
def test_blocks_equal_the_whole(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    model = tiny_model(variant).double()
    encoded = encoded_batch(model, torch.float64)
    whole = model.scorer(encoded.image, encoded.text)
    # Float64, the same sums in blocks.
    torch.testing.assert_close(score_blocks(model.scorer, encoded), whole, rtol=0, atol=1e-12)


@every_variant
def test_blocks_give_the_gradient_of_the_whole(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    model = tiny_model(variant).double()
    gradients = []
    for score in (score_blocks, lambda scorer, encoded: scorer(encoded.image, encoded.text)):
        encoded = encoded_batch(model, torch.float64)
        model.zero_grad()
        score(model.scorer, encoded).square().sum().backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)  # float64: the order of sums


def kept_bytes(model: Camp, batch: int, loss_of: Callable[..., Tensor]) -> int:
    """Bytes that the scorer's part of a loss keeps for its backward pass."""
    features, lengths = torch.rand(batch, 6, FEATURE_WIDTH), torch.full((batch,), 7)
    tokens = torch.randint(1, model.config.vocabulary_size, (batch, 7))
    image, text = model.encode_images(features), model.encode_texts(tokens, lengths)
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(model.scorer, Encoded(image, text, lengths), torch.eye(batch, dtype=torch.bool))
    return total


def all_pairs(scorer: Scorer, encoded: Encoded, matches: Tensor) -> Tensor:
    logits = scorer(encoded.image, encoded.text)
    wrong = logits.masked_fill(matches, -math.inf)
    return matching_bce(logits.diagonal(), wrong.max(1).values, wrong.max(0).values)


@pytest.mark.parametrize("variant", ["paper", "scalar", "gate_fusion_new"])
def test_what_is_kept_for_gradients_grows_with_the_batch_and_not_with_its_square(variant: str) -> None:
    model = tiny_model(variant)
    chosen, every = ([kept_bytes(model, batch, loss) for batch in (8, 16, 32)] for loss in (pair_loss, all_pairs))
    assert chosen[2] / chosen[1] < 2.1  # twice as many pairs, and a little that does not grow
    assert every[2] / every[1] > 3.5


def unit_vectors(seed: int) -> Tensor:
    vectors = torch.from_numpy(np.random.default_rng(seed).standard_normal((BATCH, 8)))
    return vectors / vectors.norm(dim=1, keepdim=True)


def written_out_info_nce(v: np.ndarray, t: np.ndarray, scale: float) -> float:
    """-log of the share of the right partner among itself and all that do not match, both ways, averaged."""
    total = 0.0
    for own in range(BATCH):
        others = [k for k in range(BATCH) if k == own or not MATCHES[own, k]]
        right = math.exp(scale * v[own] @ t[own])
        total -= math.log(right / sum(math.exp(scale * v[own] @ t[k]) for k in others))
        total -= math.log(right / sum(math.exp(scale * v[k] @ t[own]) for k in others))
    return total / BATCH / 2


def test_contrastive_loss_is_info_nce_written_out() -> None:
    v, t, log_scale = unit_vectors(0), unit_vectors(1), torch.tensor(math.log(7.0))
    expected = written_out_info_nce(v.numpy(), t.numpy(), 7.0)
    assert float(contrastive_loss(v, t, MATCHES, log_scale)) == pytest.approx(expected, rel=1e-5)  # computed in float32


def test_contrastive_scale_stops_at_100() -> None:
    v, t = unit_vectors(0), unit_vectors(1)
    losses = [float(contrastive_loss(v, t, MATCHES, torch.tensor(math.log(scale)))) for scale in (100.0, 1e6)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # exp(log(100)) in float32


@every_variant
def test_logits_at_hand_give_the_same_loss_and_gradient(variant: str) -> None:
    model = tiny_model(variant).double()
    losses = []
    for at_hand in (False, True):
        encoded = encoded_batch(model, torch.float64)
        logits = model.scorer(encoded.image, encoded.text) if at_hand else None
        loss = pair_loss(model.scorer, encoded, MATCHES, 1, 2, logits)
        model.zero_grad()
        loss.backward()
        losses.append([loss.detach(), *(w.grad.clone() for w in model.parameters() if w.grad is not None)])
    for apart, together in zip(*losses, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)  # float64: the order of sums


def test_softmax_loss_is_info_nce_written_out_without_other_matches() -> None:
    logits = torch.randn(BATCH, BATCH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = 0.0
    for table, matches in ((logits, MATCHES), (logits.T, MATCHES.T)):
        for k in range(BATCH):
            rivals = [table[k, j].exp() for j in range(BATCH) if j == k or not matches[k, j]]
            expected += -math.log(table[k, k].exp() / sum(rivals)) / (2 * BATCH)
    assert softmax_loss(logits, MATCHES).item() == pytest.approx(expected, abs=1e-12)


def test_drift_loss_pulls_back_what_is_beyond_its_bound_alone() -> None:
    logits = torch.tensor(
        [[0.0, DRIFT, -DRIFT], [DRIFT + 3, -DRIFT - 1, -1.0]], dtype=torch.float64, requires_grad=True
    )
    loss = drift_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx((3**2 + 1**2) / 6)
    expected = torch.tensor([[0, 0, 0], [1, -1 / 3, 0]], dtype=torch.float64)  # 2 * excess / 6
    torch.testing.assert_close(logits.grad, expected)
