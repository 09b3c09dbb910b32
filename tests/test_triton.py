"""`camp export-triton`: a model repository of Triton whose configurations fit the bundle's contract."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BackendError, Bundle, BundleError, InputError, MissingExtraError
from camp_sdk.client import TritonRanker
from camp_sdk.runtime.tokenizer import open_tokenizer
from camp_sdk.triton.config import TYPES
from camp_sdk.triton.repository import ENCODERS, TritonOptions, export_repository
from tests.helpers.command import Camp
from tests.helpers.manifests import rewrite

text_format = pytest.importorskip("google.protobuf.text_format", reason="the extra triton is not installed")
model_config = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="the extra triton is not installed")


def parsed(repository: Path) -> dict[str, Any]:
    """The configuration of each model; a field that Triton does not know is an error."""
    return {
        path.parent.name: text_format.Parse(path.read_text(encoding="utf-8"), model_config.ModelConfig())
        for path in repository.glob("*/config.pbtxt")
    }


def exported(folder: Path, target: Path, **options: Any) -> dict[str, Any]:
    export_repository(Bundle(folder), target, TritonOptions(**options))
    return parsed(target)


def check_tensors(bundle: Bundle, configs: dict[str, Any], precision: str) -> None:
    """Every name, type and axis is that of the manifest; letters are -1, and N of the text graph the longest text."""
    longest = open_tokenizer(bundle).max_tokens
    for name, graph in bundle.manifest.graphs_in(precision).items():
        for specs, declared in ((graph.inputs, configs[name].input), (graph.outputs, configs[name].output)):
            assert [spec.name for spec in specs] == [tensor.name for tensor in declared]
            for spec, tensor in zip(specs, declared, strict=True):
                shape = spec.shape[1:] if name in ENCODERS else spec.shape
                sizes = {"N": longest} if name == "text" else {}
                assert model_config.DataType.Name(tensor.data_type) == f"TYPE_{TYPES[spec.dtype]}"
                dims = [axis if isinstance(axis, int) else sizes.get(axis, -1) for axis in shape]
                assert list(tensor.dims) == (dims or [1])
                assert tensor.HasField("reshape") == (not dims)


@pytest.mark.parametrize("variant", ["paper", "scalar", "cross_attention_new"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_every_configuration_parses_and_fits_the_contract(
    half_bundle: Callable[[str], Path], tmp_path: Path, variant: str, precision: str
) -> None:
    bundle = Bundle(half_bundle(variant))
    configs = exported(bundle.folder, tmp_path / "repository", precision=precision, device="cpu")
    graphs = bundle.manifest.graphs_in(precision)
    assert configs.keys() == {*graphs, "rank"} | ({"vision_image"} if "vision" in graphs else set())
    check_tensors(bundle, configs, precision)
    for name, graph in graphs.items():
        one, folder = configs[name], tmp_path / "repository" / name
        assert (folder / "1" / "model.onnx").read_bytes() == bundle.file(graph.file).read()
        assert (one.name, one.backend) == (name, "onnxruntime")
        assert one.max_batch_size == (32 if name in ENCODERS else 0)
        assert one.HasField("dynamic_batching") == (name in ENCODERS)
        assert one.instance_group[0].kind == one.instance_group[0].KIND_CPU


def test_warm_up_has_every_input_and_files_of_its_size(picture_bundle: Path, tmp_path: Path) -> None:
    configs = exported(picture_bundle, tmp_path / "repository")
    for name in ("vision", "image", "text", "scorer"):
        (warmup,) = configs[name].model_warmup
        assert set(warmup.inputs) == {tensor.name for tensor in configs[name].input}
        for key, value in warmup.inputs.items():
            assert all(size > 0 for size in value.dims)
            if name in ENCODERS:
                width = {model_config.TYPE_FP32: 4, model_config.TYPE_INT64: 8}[value.data_type]
                file = tmp_path / "repository" / name / "warmup" / value.input_data_file
                assert file.stat().st_size == width * int(np.prod(value.dims)), key


def test_the_ensemble_maps_pixels_to_the_images_tensors(picture_bundle: Path, tmp_path: Path) -> None:
    configs = exported(picture_bundle, tmp_path / "repository")
    ensemble = configs["vision_image"]
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == ("vision", "image")
    assert dict(first.output_map) == dict(second.input_map) == {"features": "features"}
    assert list(ensemble.output) == list(configs["image"].output)
    assert list(ensemble.input) == list(configs["vision"].input)


def test_the_command_replaces_a_repository_and_nothing_else(feature_bundle: Path, tmp_path: Path, camp: Camp) -> None:
    target = tmp_path / "repository"
    for _ in range(2):
        result = camp("export-triton", feature_bundle, "--output", target, "--precision", "fp16")
        assert (result.code, result.err) == (0, "")
    assert "rank" in result.out
    (target / "mine").mkdir()
    result = camp("export-triton", feature_bundle, "--output", target)
    assert result.code != 0
    assert "name another folder" in result.err
    assert (target / "mine").is_dir()


def test_what_cannot_be_exported(feature_bundle: Path, picture_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "repository"
    with pytest.raises(BackendError, match="camp build"):
        exported(feature_bundle, target, plans=True)
    with pytest.raises(BundleError, match="no float16 graphs"):
        exported(picture_bundle, target, precision="float16")
    with pytest.raises(InputError, match="expected gpu or cpu"):
        exported(feature_bundle, target, device="tpu")
    assert not target.exists()


def test_a_bundle_without_an_explainer(bundle_copy: Path, tmp_path: Path) -> None:
    folder = rewrite(bundle_copy, lambda manifest: manifest["graphs"].pop("explainer") and None)
    assert exported(folder, tmp_path / "repository").keys() == {"image", "text", "scorer", "rank"}


def test_a_client_without_its_package_names_the_extra(feature_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MissingExtraError, match=r"\[triton\]"):
        TritonRanker(feature_bundle)


def test_a_server_that_is_not_there(feature_bundle: Path, features: NDArray[np.float32]) -> None:
    with TritonRanker(feature_bundle, "127.0.0.1:1") as ranker, pytest.raises(BackendError, match="Triton server"):
        ranker.encode_images(features)
    with pytest.raises(InputError, match="expected grpc or http"):
        TritonRanker(feature_bundle, protocol="carrier")
