"""The networks of examples/networks: numpy's scores, float16, TensorRT-RTX, ranking without PyTorch, gradients."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from camp_sdk import Bundle, Retriever
from camp_sdk.export.network.camp import Scorer
from camp_sdk.export.training.losses import Encoded, pair_loss
from camp_sdk.runtime.errors import CampError
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tokenizer import open_tokenizer
from examples.networks import run
from examples.networks.saf import Saf
from examples.networks.scan import ScanI2T, ScanT2I
from examples.networks.sgraf import Sgr
from examples.networks.vse import VseInfinity
from tests.helpers.network_references import REFERENCES
from tests.helpers.networks import exported_in_half, known
from tests.helpers.processes import ROOT, run_blocked
from tests.helpers.tiny import CAPTIONS, FEATURE_WIDTH, tiny_model

NETWORKS: dict[str, type[Scorer]] = {network.__name__: network for network in (ScanT2I, ScanI2T, Sgr, Saf, VseInfinity)}
IMAGES = np.random.default_rng(5).standard_normal((9, 6, FEATURE_WIDTH), dtype=np.float32)
RANK = """
import sys
import numpy as np
from pathlib import Path
from camp_sdk import Retriever

with Retriever(Path(sys.argv[1]), "onnxruntime") as retriever:
    print(*(match.corpus_id for match in retriever.rank(sys.argv[3], np.load(sys.argv[2]), top_k=99)))
"""
rtx = pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")


@pytest.fixture(scope="module", autouse=True)
def _known() -> Iterator[None]:
    """The networks under the names by which configurations find them."""
    with known(NETWORKS):
        yield


@pytest.fixture(scope="module", params=NETWORKS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of each network with float16 graphs: both gates of the export have passed."""
    return exported_in_half(request.param, tmp_path_factory.mktemp(request.param))


def numpy_logits(bundle: Path) -> NDArray[np.float64]:
    """The logits [I, T] by numpy, of each pair on its own, from PyTorch's V and T in float64."""
    with Retriever(bundle, "onnxruntime") as retriever:
        name, tokens = retriever.bundle.manifest.variant, open_tokenizer(retriever.bundle).encode(CAPTIONS)
    model = tiny_model(name).double()
    with torch.no_grad():
        V = model.image_encoder(torch.from_numpy(IMAGES).double()).numpy()
        T = model.text_encoder(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)).numpy()
    weights = {key: weight.numpy() for key, weight in model.scorer.state_dict().items()}
    words = [rows[:length] for rows, length in zip(T, tokens.lengths, strict=True)]
    return np.array([[REFERENCES[name](weights, regions, rows) for rows in words] for regions in V])


def test_scores_are_those_of_numpy(bundle: Path, tmp_path: Path) -> None:
    expected = numpy_logits(bundle)
    assert np.ptp(expected) > 0.1  # the pairs differ by far more than what is allowed below
    for backend in ("onnxruntime", "openvino"):
        with Retriever(bundle, backend) as retriever:
            found = retriever.score_matrix(IMAGES, CAPTIONS, logits=True)
            single = [
                [retriever.score_matrix(i[None], [c], logits=True)[0, 0] for c in CAPTIONS[:4]] for i in IMAGES[:2]
            ]
        # Float32 sums of a few hundred products, of logits of about one.
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(single, expected[:2, :4], rtol=0, atol=1e-5)
    np.save(tmp_path / "images.npy", IMAGES)
    done = run_blocked(RANK, bundle, tmp_path / "images.npy", Path(CAPTIONS[1]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(image) for image in np.argsort(-expected[:, 1])]


@rtx
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_tensorrt_rtx_builds_every_graph(bundle: Path, precision: str) -> None:
    opened, here = Bundle(bundle), replace(here_of("tensorrt-rtx"), compute_capability=None)
    for graph in opened.manifest.graphs:
        order = EngineOrder(opened, graph, precision, here)
        record = build_engine(order)
        assert (record.graph, record.precision) == (graph, order.own_precision)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_gets_a_gradient_from_ragged_texts(name: str) -> None:
    """Padding must not turn a gradient into NaN: norms and square roots of zero have none."""
    model, generator = tiny_model(name), torch.Generator().manual_seed(0)
    lengths = torch.tensor([7, 1, 2, 5, 6])
    tokens = torch.randint(1, model.config.vocabulary_size, (5, 7), generator=generator)
    image, text = model.encode_images(torch.from_numpy(IMAGES[:5])), model.encode_texts(tokens, lengths)
    image.pop("image.global"), text.pop("text.global")
    loss = pair_loss(model.scorer, Encoded(image, text, lengths), torch.eye(5, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
    learned = {n: p.grad for n, p in model.named_parameters() if not n.startswith("global_")}
    assert [n for n, grad in learned.items() if grad is None or not grad.isfinite().all()] == []
    assert [n for n, grad in learned.items() if grad is not None and not grad.any()] == []


@pytest.mark.parametrize("name", ["scan", "sgraf", "saf", "vse"])
def test_a_network_takes_less_than_80_lines(name: str) -> None:
    assert len((ROOT / f"examples/networks/{name}.py").read_text(encoding="utf-8").splitlines()) < 80


# The command


def test_chance_is_that_of_drawing_without_putting_back() -> None:
    expected = 100 * (1 - math.comb(1500 - 5, 10) / math.comb(1500, 10))
    assert run.chance_of_texts(300, 5) == pytest.approx(expected, rel=1e-12)  # products of ten in float64


def test_its_processes_cannot_import_pytorch() -> None:
    command = [sys.executable, "-c", run.WITHOUT_TORCH, "export", "--checkpoint", "a.ckpt", "--output", "b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "torch is not installed" in done.stderr


def test_a_recall_near_chance_fails_after_everything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(network: run.Network, data: Path, output: Path) -> dict[str, Any]:
        r10 = 90.0 if network.title != "SGRAF, SAF" else 20.0
        recall = {side: {"r1": 9.0, "r5": 15.0, "r10": r10} for side in ("text_to_image", "image_to_text")}
        engines = [{"graph": "image", "precision": "float16", "low_share": 1.0, "build_s": 0.1}]
        rest = {"training_s": 1.0, "parity": 1e-6, "float16": ["image"], "engines": engines}
        ranking = [str(path) for path in sorted((data / "test").glob("*.png"))[:2]]
        return {"title": network.title, "network": network.source, "recall": recall, "ranking": ranking, **rest}

    monkeypatch.setattr(run, "measured", measured)
    monkeypatch.setattr(run, "COUNTS", {"train": 2, "dev": 2, "test": 40})  # chance: R@10 of 25
    monkeypatch.setattr(run, "FACTOR", 2)
    with pytest.raises(CampError, match="R@10 below 2 times chance: SGRAF, SAF"):
        run.main(tmp_path / "out")
    rows = json.loads((tmp_path / "out/results.json").read_text())["networks"]
    assert [row["title"] for row in rows if not row["passed"]] == ["SGRAF, SAF"]
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<img") == 2 * len(rows)
    assert all(row["network"] in page for row in rows)
