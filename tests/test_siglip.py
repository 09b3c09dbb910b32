"""SigLIP and SigLIP 2 from the files of their makers to scores, as test_clip.py does it for CLIP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from camp_sdk import BundleError, Retriever
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.import_pretrained import import_pretrained
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.pictures import normalise, read_pixels
from camp_sdk.runtime.tokenizer import Tokenizer

pytest.importorskip("transformers")
from tests.helpers import published  # needs transformers

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [
    "a photo of a dog",
    "Two people, on the left of the red house!",
    "x",
    "a blue star above the house " * 6,  # longer than the model reads
    "\u6771\u4eac\u00e9",
]


@pytest.fixture(scope="module", params=[False, True], ids=["SigLIP", "SigLIP 2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.write_siglip(tmp_path_factory.mktemp("siglip") / "tiny", request.param)


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return import_pretrained(str(model), tmp_path_factory.mktemp("imported") / "run")


@pytest.fixture(scope="module")
def retriever(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Retriever]:
    bundle = export_bundle(checkpoint, tmp_path_factory.mktemp("exported") / "bundle")
    with Retriever(bundle.folder, "onnxruntime") as opened:
        yield opened


@pytest.mark.parametrize("name", published.PICTURES)
def test_pixels_are_those_of_the_models_own_processor(checkpoint: Path, model: Path, name: str) -> None:
    from transformers import SiglipImageProcessorPil

    _, origin = load_checkpoint(checkpoint)
    assert origin.pixels is not None
    assert (origin.pixels.fit, origin.pixels.grid) == ("stretch", (4, 4))
    data = published.PICTURES[name]()
    found = normalise(read_pixels(data, origin.pixels, name)[None], origin.pixels)[0]
    expected = published.theirs(data, SiglipImageProcessorPil.from_pretrained(model))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.001 / 255 / 0.5)  # one of 255, after it is normalised


def test_token_ids_are_those_of_the_models_own_tokenizer(checkpoint: Path, model: Path) -> None:
    from transformers import AutoTokenizer

    texts = [text for text in published.captions() if any(letter.isalnum() for letter in text)]
    ours = Tokenizer(load_checkpoint(checkpoint)[1].tokenizer).encode(texts)
    expected = AutoTokenizer.from_pretrained(model)(texts, truncation=True, max_length=published.LONGEST)["input_ids"]
    assert len(texts) == 500
    assert [ids[:n].tolist() for ids, n in zip(ours.ids, ours.lengths, strict=True)] == expected
    assert all(words[-1] in ("</s>", "<eos>") and words[0] not in ("</s>", "<bos>") for words in ours.words)


def test_logits_and_order_are_those_of_the_model(retriever: Retriever, model: Path) -> None:
    from transformers import AutoTokenizer, SiglipImageProcessorPil, SiglipModel

    pictures = [published.picture(40 + 9 * index, 64, index) for index in range(8)]
    tokens = AutoTokenizer.from_pretrained(model)(
        TEXTS, padding="max_length", truncation=True, max_length=published.LONGEST, return_tensors="pt"
    )
    pixels = SiglipImageProcessorPil.from_pretrained(model)(pictures, return_tensors="pt")
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(model)(input_ids=tokens["input_ids"], **pixels).logits_per_image.numpy()
    assert np.ptp(expected) > 1  # the scores differ, so that an order means something
    scores = retriever.score_matrix(pictures, TEXTS).astype(np.float64)
    # Logits of at most 6 are recovered from float32 scores to 6e-8 / (s (1 - s)) = 3e-5 at most.
    np.testing.assert_allclose(np.log(scores / (1 - scores)), expected, rtol=0, atol=1e-4)
    gallery = retriever.encode_images(pictures)
    for text, caption in enumerate(TEXTS):
        order = [match.corpus_id for match in retriever.rank(caption, gallery, top_k=8)]
        assert order == np.argsort(-expected[:, text]).tolist()


def test_padding_beyond_a_text_does_not_matter(retriever: Retriever) -> None:
    picture = published.picture(40, 40)
    alone = [retriever.score_matrix([picture], [text])[0, 0] for text in TEXTS]
    np.testing.assert_allclose(retriever.score_matrix([picture], TEXTS)[0], alone, rtol=0, atol=1e-6)  # float32 sums


def test_a_word_that_is_not_known_is_named(retriever: Retriever) -> None:
    if retriever.bundle.manifest.pixels and retriever.bundle.manifest.pixels.resample == "bicubic":  # SigLIP
        assert retriever._tokenizer.encode(["a ♥ dog"]).unknown_words(0) == ("♥",)
    else:  # SigLIP 2 knows every byte
        assert retriever._tokenizer.encode(["a ♥ dog"]).unknown == ((),)


def test_padding_that_no_file_names(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": "<nowhere>"}))
    with pytest.raises(BundleError, match="pad_token '<nowhere>'"):
        import_pretrained(str(folder), tmp_path / "run")


def test_a_model_for_pictures_of_any_size_is_refused_with_what_is_supported(tmp_path: Path) -> None:
    from transformers import Siglip2Config

    Siglip2Config(text_config={"vocab_size": 50000}).save_pretrained(tmp_path / "naflex")
    with pytest.raises(BundleError, match=r"model_type 'siglip2': .* \(NaFlex\), which is not supported; use one"):
        import_pretrained(str(tmp_path / "naflex"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
