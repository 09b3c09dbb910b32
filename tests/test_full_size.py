"""Models of CLIP and SigLIP in their published sizes, from their makers' files to a ranking.

Only `make full-size` runs them: CLIP takes about two minutes on two cores and 4 GB of memory, SigLIP more, which is too
much for every run of CI. All but the sizes is tested with small models in test_clip.py and test_siglip.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from camp_sdk import Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.import_pretrained import import_pretrained

pytest.importorskip("transformers")
from tests.helpers import published  # needs transformers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("CAMP_FULL_SIZE" not in os.environ, reason="takes minutes: run `make full-size`"),
]
TEXTS = ["a photo of a dog", "two people on the left of the red house", "star", "a blue star above the cat " * 20]
WRITERS: dict[str, Callable[[Path], Path]] = {
    "CLIP ViT-B/32": lambda folder: published.write_clip(folder, published.CLIP_VIT_B_32),
    "SigLIP B/16": lambda folder: published.write_siglip(folder, False, published.SIGLIP_B_16_224),
}


@pytest.fixture(scope="module", params=WRITERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("published") / "model")


@pytest.fixture(scope="module")
def retriever(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    folder = tmp_path_factory.mktemp("imported")
    bundle = export_bundle(import_pretrained(str(model), folder / "run"), folder / "bundle")
    with Retriever(bundle.folder, "onnxruntime") as opened:
        yield opened


def pictures() -> list[Image.Image]:
    """Patches of different colours at several scales, so that vectors differ as those of photos do."""
    return [published.picture(3 + index, 4, index).resize((300 + 40 * index, 240)) for index in range(6)]


def logits_of(model: Path, images: list[Image.Image]) -> NDArray[np.float32]:
    """The logits [I, T] of `transformers`, from its own processor and tokenizer."""
    from transformers import AutoModel, AutoTokenizer, CLIPImageProcessorPil, SiglipImageProcessorPil

    network = AutoModel.from_pretrained(model)
    is_clip = network.config.model_type == "clip"
    longest = network.config.text_config.max_position_embeddings
    fill: Any = True if is_clip else "max_length"
    tokens = AutoTokenizer.from_pretrained(model)(
        TEXTS, padding=fill, truncation=True, max_length=longest, return_tensors="pt"
    )
    given = {name: tokens[name] for name in (["input_ids", "attention_mask"] if is_clip else ["input_ids"])}
    processor = (CLIPImageProcessorPil if is_clip else SiglipImageProcessorPil).from_pretrained(model)
    with torch.no_grad():
        logits: NDArray[np.float32] = network(
            **given, **processor(images, return_tensors="pt")
        ).logits_per_image.numpy()
    return logits


def test_logits_and_order_are_those_of_the_model(retriever: Retriever, model: Path) -> None:
    images = pictures()
    expected = logits_of(model, images)
    gaps = np.diff(np.sort(expected, axis=0), axis=0)
    assert gaps.min() > 1e-3  # no two pictures are so close that their order means nothing
    np.testing.assert_allclose(retriever.score_matrix(images, TEXTS, logits=True), expected, rtol=0, atol=1e-4)
    gallery = retriever.encode_images(images)
    for text, caption in enumerate(TEXTS):
        order = [match.corpus_id for match in retriever.rank(caption, gallery, top_k=len(images))]
        assert order == np.argsort(-expected[:, text]).tolist()
