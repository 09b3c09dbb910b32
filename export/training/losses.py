"""The losses of CAMP.

Hardest-negative binary cross-entropy or margin ranking on pairs, softmax over all pairs of a batch, contrastive on
global vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from camp_sdk.export.network.camp import Scorer, Tensors

CLAMP = math.log((1 - 1e-6) / 1e-6)  # the logit whose score is 1 - 1e-6: scores are clamped before the logarithm
EPSILON = 1e-6  # how close a score comes to 0 and 1
DRIFT = 2 * CLAMP  # the logit beyond which `drift_loss` begins
PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of matching pairs, wrong texts, wrong images
BLOCK_IMAGES = BLOCK_TEXTS = 16  # measured: d = 192, R = 36, 3 to 23 words, 7 MB of intermediates


@dataclass(frozen=True)
class Encoded:
    """Both sides of a batch, as the scorer reads them.

    Args:
        image: image tensors [I, ...] by name.
        text: text tensors [T, ...] by name.
        lengths: the number of words of each text, [T] int64.
    """

    image: Tensors
    text: Tensors
    lengths: Tensor

    def first(self, count: int) -> Encoded:
        """The first images and the first texts."""
        part = slice(count)
        return Encoded(_take(self.image, part), _take(self.text, part), self.lengths[part])


def matching_bce(matching: Tensor, wrong_text: Tensor, wrong_image: Tensor) -> Tensor:
    """Hardest-negative binary cross-entropy of section 3.5, from logits, averaged over the batch.

    L = -[log m(I, T) + log(1 - m(I, T'))] - [log m(I, T) + log(1 - m(I', T))], each term a mean.

    Args:
        matching: [B], logits of matching pairs.
        wrong_text: logits of each image with a wrong text, one or more per pair.
        wrong_image: logits of each text with a wrong image, one or more per pair.
    """
    matching, wrong_text, wrong_image = (x.clamp(-CLAMP, CLAMP) for x in (matching, wrong_text, wrong_image))
    return 2 * F.softplus(-matching).mean() + F.softplus(wrong_text).mean() + F.softplus(wrong_image).mean()


def margin_ranking(matching: Tensor, wrong_text: Tensor, wrong_image: Tensor, margin: float = 0.2) -> Tensor:
    """Hinge loss of the cross-attention models, from cosines, averaged over the batch.

    L = max(0, margin - s(I, T) + s(I, T')) + max(0, margin - s(I, T) + s(I', T)).

    Args:
        matching: [B], cosines of matching pairs.
        wrong_text: cosines of each image with a wrong text, one or more per pair, in the order of the pairs.
        wrong_image: cosines of each text with a wrong image, likewise.
        margin: how much higher the cosine of a matching pair should be.
    """

    def violation(wrong: Tensor) -> Tensor:
        own = matching.repeat_interleave(len(wrong) // len(matching))
        return (margin - own + wrong).clamp(min=0).mean()

    return violation(wrong_text) + violation(wrong_image)


def cosine_bce(matching: Tensor, wrong_text: Tensor, wrong_image: Tensor) -> Tensor:
    """`matching_bce` of cosines, which are clamped to [1e-6, 1 - 1e-6] and taken as probabilities.

    The released code trains its cross-attention models with it. A cosine below zero has no gradient.

    Args:
        matching: [B], cosines of matching pairs.
        wrong_text: cosines of each image with a wrong text, one or more per pair.
        wrong_image: cosines of each text with a wrong image, one or more per pair.
    """
    matching, wrong_text, wrong_image = (x.clamp(EPSILON, 1 - EPSILON) for x in (matching, wrong_text, wrong_image))
    return -2 * matching.log().mean() - (1 - wrong_text).log().mean() - (1 - wrong_image).log().mean()


def loss_of_pairs(activation: str, loss: str = "") -> PairLoss:
    """The loss of pairs from their scores.

    Args:
        activation: the scorer's: "none" if it gives cosines, "sigmoid" if it gives logits.
        loss: "bce", "margin", or "" for the one that suits the scorer: `margin_ranking` for cosines.
    """
    if activation == "none":
        return cosine_bce if loss == "bce" else margin_ranking
    return matching_bce


def score_pairs(scorer: Scorer, image: Tensors, text: Tensors) -> Tensor:
    """Logits [P] of aligned pairs: image tensors [P, ...] and text tensors [P, ...], row by row."""
    single = torch.vmap(scorer)  # one image against one text, P times
    return single(  # type: ignore[no-any-return]  # vmap is untyped
        {name: tensor.unsqueeze(1) for name, tensor in image.items()},
        {name: tensor.unsqueeze(1) for name, tensor in text.items()},
    ).reshape(-1)


def score_blocks(scorer: Scorer, encoded: Encoded) -> Tensor:
    """Logits [I, T] of all pairs, block by block, without keeping intermediates, so that memory stays small.

    Texts of similar length share a block, without the padding of the batch's longest text. With gradients, each block
    is computed again in the backward pass; that costs less time than it saves, because a block fits the processor's
    caches.
    """
    image, lengths = encoded.image, encoded.lengths
    order = lengths.argsort()
    texts = [
        _trimmed(scorer, _take(encoded.text, chosen), int(lengths[chosen[-1]]))
        for chosen in torch.split(order, BLOCK_TEXTS)
    ]
    count = len(next(iter(image.values())))
    images = [_take(image, slice(k, k + BLOCK_IMAGES)) for k in range(0, count, BLOCK_IMAGES)]
    score = cast("Callable[[Tensors, Tensors], Tensor]", scorer)
    if torch.is_grad_enabled():
        # No random state to preserve: a scorer draws no random numbers.
        score = partial(checkpoint, scorer, use_reentrant=False, preserve_rng_state=False)
    rows = [torch.cat([score(some, words) for words in texts], 1) for some in images]
    return torch.cat(rows)[:, order.argsort()]


def choose_negatives(logits: Tensor, candidates: int, count: int = 1) -> Tensor:
    """For each row of logits, random columns among its highest.

    Args:
        logits: [B, C]; pairs that match hold -inf, and are not chosen.
        candidates: how many of the highest to choose among. If it equals ``count``, the hardest negatives are chosen;
            if it equals C, any negatives.
        count: columns per row. If a row has fewer negatives, every row gets that number. A row of matches alone gets
            some of its matches.

    Returns:
        [B, count] int64.
    """
    others = torch.isfinite(logits).sum(1)
    usable = int(others[others > 0].min()) if others.any() else 1
    best = logits.topk(min(max(candidates, count), usable), dim=1).indices  # [B, candidates]
    order = torch.rand(best.shape, device=best.device).argsort(1)
    return best.gather(1, order[:, :count])


def pair_loss(
    scorer: Scorer,
    encoded: Encoded,
    matches: Tensor,
    candidates: int = 1,
    negatives: int = 1,
    all_logits: Tensor | None = None,
    loss: str = "",
) -> Tensor:
    """Hardest-negative loss of B aligned pairs, at the cost of 3 B gradients instead of B * B with one negative.

    `loss_of_pairs` chooses the loss. All pairs are scored without
    gradients to find the negatives; the positives and the chosen negatives are then scored again with gradients.

    Args:
        scorer: the network's scorer.
        encoded: the tensors of the pairs, I = T = B.
        matches: [B, B] bool, true where an image and a text of the batch belong together.
        candidates: how many of the hardest negatives to choose among (`choose_negatives`).
        negatives: negatives per direction, averaged; the paper takes one.
        all_logits: [B, B] logits of all pairs with gradients, if another loss needs them anyway; nothing is scored
            again then.
        loss: "bce", "margin", or "" for the one that suits the scorer.
    """
    if all_logits is None:
        with torch.no_grad():
            scored = score_blocks(scorer, encoded)
    else:
        scored = all_logits.detach()
    logits = _full(scored).masked_fill(matches, -math.inf)
    own = torch.arange(len(logits), device=logits.device)
    wrong_text = choose_negatives(logits, candidates, negatives)  # [B, negatives]
    wrong_image = choose_negatives(logits.T, candidates, negatives)
    images = torch.cat([own, own.repeat_interleave(wrong_text.shape[1]), wrong_image.flatten()])
    texts = torch.cat([own, wrong_text.flatten(), own.repeat_interleave(wrong_image.shape[1])])
    if all_logits is None:
        chosen = _full(score_pairs(scorer, _take(encoded.image, images), _take(encoded.text, texts)))
    else:
        chosen = _full(all_logits)[images, texts]
    # A row of matches alone has no negative. Its pair, at -inf, is clamped: almost no loss, and no gradient.
    matching, wrong = chosen[: len(own)], chosen[len(own) :].masked_fill(matches[images, texts][len(own) :], -math.inf)
    of_pairs = loss_of_pairs(scorer.activation, loss)
    return of_pairs(matching, wrong[: wrong_text.numel()], wrong[wrong_text.numel() :])


def contrastive_loss(image: Tensor, text: Tensor, matches: Tensor, log_scale: Tensor) -> Tensor:
    """`softmax_loss` of the scaled dot products of the global vectors.

    Args:
        image: unit vectors [B, d].
        text: unit vectors [B, d].
        matches: [B, B], true where an image (row) and a text (column) belong together.
        log_scale: the logarithm of the scale, which is limited to 100.
    """
    return softmax_loss(log_scale.exp().clamp(max=100) * _full(image) @ _full(text).T, matches)


def softmax_loss(logits: Tensor, matches: Tensor) -> Tensor:
    """InfoNCE over the batch, in both directions.

    Args:
        logits: [B, B]; the pairs on the diagonal are the positives.
        matches: [B, B] bool, true where an image (row) and a text (column) belong together. Matching pairs off the
            diagonal are left out.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = _full(logits).masked_fill(matches & ~own, -math.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def drift_loss(logits: Tensor) -> Tensor:
    """Mean square of the amount by which the absolute values of logits [I, T] exceed `DRIFT`.

    The other losses clamp logits, so they do not limit them. Without this loss, the logits of very different pairs
    drift so far that float32's rounding exceeds the difference that the export allows.
    """
    return (_full(logits).abs() - DRIFT).clamp(min=0).square().mean()


def _full(tensor: Tensor) -> Tensor:
    """In float32 or wider: half precision from autocast is widened, float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _trimmed(scorer: Scorer, text: Tensors, words: int) -> Tensors:
    """The first words of texts, in the tensors that have an axis of words."""
    per_word = {name for name, axes in scorer.axes.items() if "N" in axes.split()}
    return {name: tensor[:, :words] if name in per_word else tensor for name, tensor in text.items()}


def _take(tensors: Tensors, indices: slice | Tensor) -> Tensors:
    return {name: tensor[indices] for name, tensor in tensors.items()}
