"""Opening a bundle: what is broken is named, with what to do; what is whole is never changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from camp_sdk import BackendError, Bundle, BundleError, Retriever
from camp_sdk.runtime import manifest as manifest_module
from camp_sdk.runtime.backends import open_engine
from camp_sdk.runtime.files import sha256_of
from camp_sdk.runtime.manifest import FITS
from tests.helpers.manifests import Change, drop, put, rename_file, rewrite
from tests.helpers.tiny import files_of

AGAIN = "export the bundle again, or copy it again from where it was made"


def test_a_whole_bundle_opens(feature_bundle: Path) -> None:
    manifest = Bundle(feature_bundle).manifest
    assert (manifest.variant, manifest.activation, manifest.feature_width) == ("paper", "sigmoid", 12)
    assert set(manifest.graphs) == {"image", "text", "scorer", "explainer"}
    assert manifest.pixels is None


def test_a_bundle_for_pictures_says_what_pixels_it_takes(picture_bundle: Path) -> None:
    pixels = Bundle(picture_bundle).manifest.pixels
    assert pixels is not None
    assert (pixels.height, pixels.width, pixels.grid) == (96, 96, (6, 6))


def test_a_manifest_says_how_pictures_are_fitted(picture_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(picture_bundle, tmp_path / "bundle"))
    for fit in FITS:
        pixels = Bundle(rewrite(copy, put(fit, "pixels", "fit"))).manifest.pixels
        assert pixels is not None
        assert pixels.fit == fit
    older = Bundle(rewrite(copy, drop("pixels", "fit"))).manifest.pixels
    assert older is not None
    assert older.fit == "stretch"


@pytest.mark.parametrize("fit", ["zoom", "", None, 5, ["crop"]])
def test_a_manifest_of_an_unknown_fit(picture_bundle: Path, tmp_path: Path, fit: Any) -> None:
    copy = Path(shutil.copytree(picture_bundle, tmp_path / "bundle"))
    with pytest.raises(BundleError, match=r"manifest\.json breaks the contract .*fit .*, expected one of .*stretch"):
        Bundle(rewrite(copy, put(fit, "pixels", "fit")))


def test_equal_bundles_have_equal_fingerprints(feature_bundle: Path, bundle_copy: Path, picture_bundle: Path) -> None:
    assert Bundle(bundle_copy).fingerprint == Bundle(feature_bundle).fingerprint
    assert Bundle(bundle_copy).fingerprint != Bundle(picture_bundle).fingerprint


def test_using_a_bundle_changes_nothing_in_it(bundle_copy: Path, features: NDArray[np.float32]) -> None:
    before = {path: (sha256_of(path), path.stat().st_mtime_ns) for path in files_of(bundle_copy)}
    with Retriever(bundle_copy, "onnxruntime") as retriever:
        retriever.rank("a red circle", list(features))
        retriever.explain("a red circle", features[0])
    assert {path: (sha256_of(path), path.stat().st_mtime_ns) for path in files_of(bundle_copy)} == before


FILES = ["explainer.onnx", "golden.npz", "image.onnx", "scorer.onnx", "text.onnx", "tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(bundle_copy: Path, name: str) -> None:
    file = bundle_copy / name
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleError, match=rf"{name} has {size - 1} bytes, manifest\.json says {size}; {AGAIN}"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_of_the_same_size(bundle_copy: Path, name: str) -> None:
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} was altered: SHA-256 .*; {AGAIN}"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(bundle_copy: Path, name: str) -> None:
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=rf"{name} is missing though manifest\.json lists it; {AGAIN}"):
        Bundle(bundle_copy)


def test_a_manifest_that_is_a_link_out(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "manifest.json").rename(tmp_path / "elsewhere.json")
    (bundle_copy / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match=r"manifest\.json leads out of the bundle"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(("version", "advice"), [(0, AGAIN), (2, "upgrade camp-sdk"), (True, AGAIN), (1.0, AGAIN)])
def test_a_schema_version_of_another_time(bundle_copy: Path, version: Any, advice: str) -> None:
    rewrite(bundle_copy, put(version, "schema_version"))
    with pytest.raises(BundleError, match=rf"has schema version {version}, this camp-sdk reads version 1; {advice}"):
        Bundle(bundle_copy)


GATES = ("graphs", "explainer", "outputs", "gates.words")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(put("image.onnx", "graphs", "explainer", "file"), id="another graph's file"),
        pytest.param(put("float16", *GATES, "dtype"), id="another dtype"),
        pytest.param(put({"dtype": "float32", "shape": ["T"]}, *GATES[:-1], "x"), id="one more"),
        pytest.param(drop(*GATES), id="one less"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says(bundle_copy: Path, change: Change) -> None:
    bundle = Bundle(rewrite(bundle_copy, change))
    with pytest.raises(BundleError, match=rf"\.onnx has the (in|out)puts .*, manifest\.json says .*; {AGAIN}"):
        open_engine(bundle, "explainer", "onnxruntime")


def test_a_run_that_fails_names_the_graph(feature_retriever: Retriever) -> None:
    with pytest.raises(BackendError, match=r"ONNX Runtime cannot run .*image\.onnx"):
        feature_retriever._engines["image"].run({"features": np.zeros((2, 2), np.float32)})


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json not found: expected a bundle folder made by camp export"):
        Bundle(tmp_path / "nowhere")


def test_a_newer_schema_version(bundle_copy: Path) -> None:
    rewrite(bundle_copy, put(2, "schema_version"))
    with pytest.raises(BundleError, match=r"manifest\.json has schema version 2.*reads version 1; upgrade camp-sdk"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    "name",
    ["../image.onnx", "a/../../image.onnx", "/etc/passwd", "..\\image.onnx", "a\\image.onnx", "C:image.onnx", "", "."],
)
def test_a_path_that_leaves_the_bundle(bundle_copy: Path, name: str) -> None:
    rewrite(bundle_copy, lambda manifest: rename_file(manifest, name))
    with pytest.raises(BundleError, match=rf"manifest\.json.*leaves the bundle.*{AGAIN}"):
        Bundle(bundle_copy)


def test_a_listed_file_outside_the_bundle(bundle_copy: Path) -> None:
    rewrite(bundle_copy, put({"bytes": 1, "sha256": "0"}, "files", "../secret"))
    with pytest.raises(BundleError, match=r"manifest\.json.*leaves the bundle"):
        Bundle(bundle_copy)


def test_a_link_that_leads_out(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "image.onnx").rename(tmp_path / "image.onnx")
    (bundle_copy / "image.onnx").symlink_to(tmp_path / "image.onnx")
    with pytest.raises(BundleError, match=r"image\.onnx leads out of the bundle to .*a bundle must hold its own files"):
        Bundle(bundle_copy)


def test_a_folder_that_leads_out(bundle_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (bundle_copy / "image.onnx").rename(tmp_path / "outside/image.onnx")
    (bundle_copy / "inner").symlink_to(tmp_path / "outside")
    rewrite(bundle_copy, lambda manifest: rename_file(manifest, "inner/image.onnx"))
    with pytest.raises(BundleError, match=r"inner/image\.onnx leads out of the bundle"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"5", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_not_one(bundle_copy: Path, content: bytes) -> None:
    (bundle_copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=rf"manifest\.json is not a manifest .*; {AGAIN}"):
        Bundle(bundle_copy)


def test_a_huge_manifest_is_not_read(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "BYTES_LIMIT", 1000)
    with pytest.raises(BundleError, match=rf"manifest\.json has \d+ bytes, more than a manifest can have; {AGAIN}"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("graph", ["image", "text", "scorer"])
def test_a_missing_graph(bundle_copy: Path, graph: str) -> None:
    rewrite(bundle_copy, drop("graphs", graph))
    with pytest.raises(BundleError, match=rf"manifest\.json breaks the contract .*missing: \['{graph}'\].*{AGAIN}"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(put("softmax", "activation"), id="unknown activation"),
        pytest.param(drop("activation"), id="no activation"),
        pytest.param(drop("variant"), id="no variant"),
        pytest.param(drop("files"), id="no files"),
        pytest.param(put([], "files"), id="files is a list"),
        pytest.param(drop("files", "tokenizer.json"), id="tokenizer without a hash"),
        pytest.param(drop("files", "scorer.onnx"), id="graph without a hash"),
        pytest.param(drop("files", "image.onnx", "sha256"), id="file without sha256"),
        pytest.param(drop("files", "image.onnx", "bytes"), id="file without bytes"),
        pytest.param(put(5, "files", "image.onnx"), id="file entry is a number"),
        pytest.param(put({}, "graphs", "other"), id="a graph of no form"),
        pytest.param(put([], "graphs"), id="graphs is a list"),
        pytest.param(put(5, "graphs", "image", "file"), id="file is a number"),
        pytest.param(put({}, "graphs", "image", "inputs"), id="image graph without input"),
        pytest.param(drop("tokenizer"), id="no tokenizer"),
        pytest.param(put("many", "tokenizer", "max_words"), id="max_words is text"),
        pytest.param(put(float("inf"), "tokenizer", "max_words"), id="max_words is infinite"),
    ],
)
def test_a_manifest_that_breaks_the_contract(bundle_copy: Path, change: Change) -> None:
    rewrite(bundle_copy, change)
    with pytest.raises(BundleError, match=rf"manifest\.json breaks the contract .*; {AGAIN}"):
        Bundle(bundle_copy)


def test_an_unknown_graph(bundle_copy: Path) -> None:
    rewrite(bundle_copy, lambda manifest: put(manifest["graphs"]["image"], "graphs", "reranker")(manifest))
    with pytest.raises(BundleError, match=r"unknown: \['reranker'\]"):
        Bundle(bundle_copy)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(drop("graphs", "image", "outputs", "image.V"), id="tensor not made"),
        pytest.param(put(["I", "R", 17], "graphs", "image", "outputs", "image.V", "shape"), id="another width"),
        pytest.param(put("int64", "graphs", "text", "outputs", "text.T", "dtype"), id="another type"),
    ],
)
def test_a_scorer_that_does_not_fit_its_encoders(bundle_copy: Path, change: Change) -> None:
    rewrite(bundle_copy, change)
    with pytest.raises(BundleError, match=rf"manifest\.json breaks the contract .*the scorer reads .*; {AGAIN}"):
        Bundle(bundle_copy)


@pytest.mark.parametrize("shape", [["I", "T", 17], ["T"]])
def test_an_explainer_of_another_shape(bundle_copy: Path, shape: list[Any]) -> None:
    rewrite(bundle_copy, put(shape, *GATES, "shape"))
    with pytest.raises(BundleError, match=r"the explainer makes 'gates\.words' .*, expected \[I, T, N\]"):
        Bundle(bundle_copy)


def test_features_of_no_fixed_width(bundle_copy: Path) -> None:
    rewrite(bundle_copy, put(["I", "R", "D"], "graphs", "image", "inputs", "features", "shape"))
    with pytest.raises(BundleError, match=r"reads 'features' .*, expected float32 \[I, R, D\] of a fixed width D"):
        Bundle(bundle_copy)


def test_words_at_another_axis_than_the_second(bundle_copy: Path) -> None:
    rewrite(bundle_copy, put(["T", 16, "N"], "graphs", "text", "outputs", "text.T", "shape"))
    with pytest.raises(BundleError, match=r"the text graph makes .*text\.T.*, expected the words N as the second axis"):
        Bundle(bundle_copy)


def test_only_listed_files_have_a_path(bundle_copy: Path) -> None:
    (bundle_copy / "extra.txt").touch()
    with pytest.raises(BundleError, match=r"'extra\.txt' is not listed in manifest\.json"):
        Bundle(bundle_copy).file("extra.txt")


def test_a_graph_that_is_not_onnx(bundle_copy: Path, features: NDArray[np.float32]) -> None:
    rewrite(bundle_copy, put("golden.npz", "graphs", "image", "file"))
    retriever = Retriever(bundle_copy, "onnxruntime")
    with pytest.raises(BundleError, match=r"golden\.npz cannot be opened: it is not an ONNX model"):
        retriever.encode_images(features)


def test_a_bundle_of_before_there_was_a_second_precision_opens(bundle_copy: Path) -> None:
    bundle = Bundle(rewrite(bundle_copy, lambda manifest: manifest.update({"precisions": ["float32"]})))
    assert bundle.manifest.precisions == {}
