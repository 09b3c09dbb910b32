"""The networks against the plain float64 reference, and the equalities between their own paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from camp_sdk.export.network.camp import DISTANCE, CampScorer
from camp_sdk.export.network.encoders import VisionNet, word_mask
from camp_sdk.export.network.model import Camp, ModelConfig
from camp_sdk.runtime.errors import InputError
from tests.helpers.reference import Fusion, encode_image, encode_text, fuse_pair, weights_of
from tests.helpers.tiny import FEATURE_WIDTH, tiny_model

# Two float64 paths of a few hundred operations each; they differ by about 1e-13.
EXACT = {"rtol": 0, "atol": 1e-9}
# Sums of 16 float32 terms in another order; they differ by about 1e-6.
SINGLE = {"rtol": 0, "atol": 1e-5}
LENGTHS = (9, 2, 5, 1)

both_variants = pytest.mark.parametrize("variant", ["paper", "scalar"])


def some_features() -> Tensor:
    """Features of four images with six regions: [4, 6, 12] float64."""
    return torch.from_numpy(np.random.default_rng(1).standard_normal((4, 6, FEATURE_WIDTH)))


def some_tokens(model: Camp, padded_to: int = max(LENGTHS), padding: int = 0) -> tuple[Tensor, Tensor]:
    """Four texts of 9, 2, 5 and 1 words, padded with any word: tokens [4, N], lengths [4]."""
    lengths = torch.tensor(LENGTHS)
    words = np.random.default_rng(2).integers(1, model.config.vocabulary_size, (len(LENGTHS), max(LENGTHS)))
    tokens = torch.nn.functional.pad(torch.from_numpy(words), (0, padded_to - max(LENGTHS)))
    return torch.where(word_mask(lengths, padded_to), tokens, padding), lengths


def reference_pair(model: Camp, image: int, text: int) -> Fusion:
    weights = weights_of(model)
    words = some_tokens(model)[0][text, : LENGTHS[text]].tolist()
    V, T = encode_image(weights, some_features()[image].numpy()), encode_text(weights, words)
    return fuse_pair(weights, model.config.variant, V, T)


def reference_logits(model: Camp) -> np.ndarray:
    return np.array([[reference_pair(model, i, t).logit for t in range(len(LENGTHS))] for i in range(4)])


@torch.no_grad()
def explained(model: Camp) -> dict[str, Tensor]:
    image, text = model.encode_images(some_features()), model.encode_texts(*some_tokens(model))
    return model.scorer.explain(image, text)


@both_variants
@torch.no_grad()
def test_float64_logits_equal_the_reference_for_every_pair(variant: str) -> None:
    model = tiny_model(variant).double()
    logits = model(some_features(), *some_tokens(model))
    np.testing.assert_allclose(logits, reference_logits(model), **EXACT)


@both_variants
@torch.no_grad()
def test_float32_logits_equal_the_reference_for_every_pair(variant: str) -> None:
    model = tiny_model(variant)
    logits = model(some_features().float(), *some_tokens(model))
    np.testing.assert_allclose(logits, reference_logits(model), **SINGLE)


@torch.no_grad()
def test_the_reference_tells_the_variants_apart() -> None:
    weights = weights_of(tiny_model("paper"))
    V, T = encode_image(weights, some_features()[0].numpy()), encode_text(weights, [1, 4, 5, 2])
    difference = fuse_pair(weights, "paper", V, T).logit - fuse_pair(weights, "scalar", V, T).logit
    assert abs(difference) > 1e-3  # a hundred times what any comparison here lets pass


@both_variants
@pytest.mark.parametrize("padding", [0, 5])
@torch.no_grad()
def test_padding_changes_no_logit(variant: str, padding: int) -> None:
    model = tiny_model(variant).double()
    tight = model(some_features(), *some_tokens(model))
    loose = model(some_features(), *some_tokens(model, padded_to=16, padding=padding))
    np.testing.assert_allclose(loose, tight, **EXACT)


@both_variants
@torch.no_grad()
def test_batch_equals_single(variant: str) -> None:
    model = tiny_model(variant).double()
    features, (tokens, lengths) = some_features(), some_tokens(model)
    batch = model(features, tokens, lengths)
    for i in range(len(features)):
        for t, words in enumerate(LENGTHS):
            single = model(features[[i]], tokens[[t], :words], lengths[[t]])
            np.testing.assert_allclose(single[0, 0], batch[i, t], **EXACT)


@both_variants
def test_attention_sums_to_one_over_regions_and_over_words(variant: str) -> None:
    out = explained(tiny_model(variant).double())
    np.testing.assert_allclose(out["attention.to_words"].sum(2), 1, **EXACT)
    np.testing.assert_allclose(out["attention.to_regions"].sum(3), 1, **EXACT)


@both_variants
def test_padded_words_get_zero_weight(variant: str) -> None:
    to_regions = explained(tiny_model(variant).double())["attention.to_regions"]  # [I, T, R, N]
    assert all((to_regions[:, t, :, words:] == 0).all() for t, words in enumerate(LENGTHS))


@both_variants
def test_explained_attention_and_gates_equal_the_reference(variant: str) -> None:
    model = tiny_model(variant).double()
    out = explained(model)
    for i in range(4):
        for t, words in enumerate(LENGTHS):
            expected = reference_pair(model, i, t)
            np.testing.assert_allclose(out["attention.to_words"][i, t, :, :words], expected.to_words.T, **EXACT)
            np.testing.assert_allclose(out["attention.to_regions"][i, t, :, :words], expected.to_regions, **EXACT)
            np.testing.assert_allclose(out["gates.regions"][i, t], expected.region_gates, **EXACT)
            np.testing.assert_allclose(out["gates.words"][i, t, :words], expected.word_gates, **EXACT)


@torch.no_grad()
def test_text_encoder_equals_a_plain_loop_gru() -> None:
    model = tiny_model("paper").double()
    tokens, lengths = some_tokens(model)
    T = model.text_encoder(tokens, lengths)
    for row, ids, words in zip(T, tokens, LENGTHS, strict=True):
        expected = encode_text(weights_of(model), ids[:words].tolist())
        np.testing.assert_allclose(row[:words], expected.T, **EXACT)


@torch.no_grad()
def test_words_beyond_a_text_are_zero_vectors() -> None:
    model = tiny_model("paper").double()
    tokens, lengths = some_tokens(model)
    assert (model.text_encoder(tokens, lengths)[~word_mask(lengths, tokens.shape[1])] == 0).all()


@both_variants
@torch.no_grad()
def test_global_vectors_are_of_unit_length(variant: str) -> None:
    model = tiny_model(variant).double()
    image, text = model.encode_images(some_features()), model.encode_texts(*some_tokens(model))
    for vectors in (image["image.global"], text["text.global"]):
        np.testing.assert_allclose(vectors.norm(dim=-1), 1, **EXACT)


@torch.no_grad()
def test_padding_changes_no_global_vector() -> None:
    model = tiny_model("paper").double()
    tight, loose = (model.encode_texts(*some_tokens(model, padded_to=n)) for n in (9, 16))
    np.testing.assert_allclose(loose["text.global"], tight["text.global"], **EXACT)


@pytest.mark.parametrize("size", [96, 192])
@torch.no_grad()
def test_vision_net_gives_36_regions(size: int) -> None:
    assert VisionNet(FEATURE_WIDTH, size)(torch.zeros(2, 3, size, size)).shape == (2, 36, FEATURE_WIDTH)


def test_vision_net_refuses_a_size_that_is_no_multiple_of_96() -> None:
    with pytest.raises(InputError, match="picture size 100: expected a multiple of 96"):
        VisionNet(FEATURE_WIDTH, 100)


def test_an_unknown_variant_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="`variant` papr: expected one of paper, scalar"):
        Camp(ModelConfig(10, "papr"))


@both_variants
@torch.no_grad()
def test_a_training_begins_with_the_distance_of_the_two_sides(variant: str) -> None:
    torch.manual_seed(0)
    scorer = Camp(ModelConfig(10, variant, width=6)).double().scorer
    assert isinstance(scorer, CampScorer)
    scorer.begin_as_distance()
    directions = scorer.mlp[0].weight[:3]
    torch.testing.assert_close(directions @ directions.T, torch.eye(3, dtype=torch.float64))
    sums = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 6)))  # v* + t*
    distance = (sums @ directions.T).abs().sum(1)
    torch.testing.assert_close(scorer.mlp(sums).squeeze(1), 2 - DISTANCE / 6 * distance)
