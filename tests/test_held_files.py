"""Files held open: what was hashed is what is read, whatever takes the file's name meanwhile."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from camp_sdk import Bundle, BundleError, Retriever
from camp_sdk.runtime import bundle as bundle_module
from camp_sdk.runtime.files import HeldFile, sha256_of, write_aside
from camp_sdk.runtime.manifest import MANIFEST_FILE, read_manifest, write_manifest

QUERY = "a red circle"
BACKENDS = ["onnxruntime", "openvino"]


def replace_by(target: Path, source: Path) -> None:
    """Put a copy of a folder in another one's place, as the export does."""
    with write_aside(target) as aside:
        shutil.copytree(source, aside)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, feature_bundle: Path) -> Path:
    """A valid bundle whose graphs have the same inputs and outputs and other weights."""
    folder = Path(shutil.copytree(feature_bundle, tmp_path_factory.mktemp("other") / "bundle"))
    for path in folder.rglob("*.onnx"):
        model = onnx.load(path)
        for weight in model.graph.initializer:
            if weight.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(weight)
                changed = np.where(np.abs(values) < 1e30, values, 0) * np.float32(1.5)  # the largest number is a mask
                weight.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), weight.name))
        onnx.save(model, path)
    write_manifest(folder, read_manifest(folder / MANIFEST_FILE))
    return folder


def test_a_file_that_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    held = HeldFile(path)
    with write_aside(path) as aside:
        aside.write_bytes(b"after")
    assert held.read() == b"before"
    path.unlink()
    assert held.read() == b"before"


def test_a_file_that_was_changed_in_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    held = HeldFile(path)
    assert held.sha256 == sha256_of(path)
    path.write_bytes(b"beyond")
    with pytest.raises(BundleError, match="was changed while it was open"):
        held.read()


def test_a_file_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    held = HeldFile(path)
    assert held.sha256
    path.write_bytes(b"")
    with pytest.raises(BundleError, match="was changed while"):
        held.read()


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            HeldFile(path)


def test_a_process_that_closes_all_files_goes_on(tmp_path: Path) -> None:
    """As daemons do; another file may get the number of a descriptor, and must stay open."""
    for name, content in (("file", b"content"), ("other", b"other")):
        (tmp_path / name).write_bytes(content)
    held = HeldFile(tmp_path / "file")
    assert held.read() == b"content"
    number = held._descriptor
    os.close(number)
    other = os.open(tmp_path / "other", os.O_RDONLY)
    if other != number:
        os.dup2(other, number)
        os.close(other)
    assert held.read() == b"content"
    del held
    gc.collect()
    assert os.fstat(number).st_size == 5
    os.close(number)


def test_a_process_that_closed_a_file_that_is_another_now(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    held = HeldFile(path)
    assert held.read() == b"before"
    os.close(held._descriptor)
    with write_aside(path) as aside:
        aside.write_bytes(b"beyond")
    with pytest.raises(BundleError, match="was changed while it was open"):
        held.read()
    os.close(held._descriptor)
    path.unlink()
    with pytest.raises(BundleError, match="was closed by this process, and opening it failed"):
        held.read()


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    closed = HeldFile(path)
    descriptor = closed._descriptor
    assert os.fstat(descriptor).st_size == 1
    del closed
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_retriever_stays_of_one_bundle(
    bundle_copy: Path, other_bundle: Path, features: NDArray[np.float32], backend: str
) -> None:
    with Retriever(bundle_copy, backend) as plain:
        expected = plain.score_matrix(features, [QUERY])
        explained = plain.explain(QUERY, features[0])
    with Retriever(other_bundle, backend) as other:
        assert np.abs(other.score_matrix(features, [QUERY]) - expected).max() > 0.01
    with Retriever(bundle_copy, backend) as retriever:
        gallery = retriever.encode_images(features)
        replace_by(bundle_copy, other_bundle)
        np.testing.assert_array_equal(retriever.score_matrix(gallery, [QUERY]), expected)
        np.testing.assert_array_equal(retriever.explain(QUERY, features[0]).to_words, explained.to_words)
        shutil.rmtree(bundle_copy)
        retriever.close()  # the graphs are opened again
        np.testing.assert_array_equal(retriever.score_matrix(gallery, [QUERY]), expected)


def test_a_bundle_that_is_replaced_while_it_is_opened(
    bundle_copy: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, replaced = bundle_module.read_manifest, []

    def replacing(path: Path) -> object:
        manifest = read(path)
        if not replaced:
            replaced.append(True)
            replace_by(bundle_copy, other_bundle)
        return manifest

    monkeypatch.setattr(bundle_module, "read_manifest", replacing)
    assert Bundle(bundle_copy).fingerprint == Bundle(other_bundle).fingerprint


def test_a_relative_path_after_a_change_of_folder(
    bundle_copy: Path, features: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle_copy.parent)
    retriever = Retriever(bundle_copy.name, "onnxruntime")
    monkeypatch.chdir("/")
    assert len(retriever.rank(QUERY, features)) == 5
    assert retriever.bundle.folder == bundle_copy.resolve()


def test_a_bundle_that_is_gone_for_a_moment(bundle_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a folder is replaced by two renames."""
    read, times = bundle_module.read_manifest, []

    def going(path: Path) -> object:
        manifest = read(path)
        times.append(bundle_copy.rename(bundle_copy.with_name("moved")) if not times else None)
        return manifest

    monkeypatch.setattr(bundle_module, "read_manifest", going)
    with pytest.raises(BundleError, match="not found"):
        Bundle(bundle_copy)
    bundle_copy.with_name("moved").rename(bundle_copy)
    assert Bundle(bundle_copy).manifest.variant == "paper"


@pytest.mark.parametrize("name", ["a" * 300, "x/" * 3000, "nul\0l"])
def test_a_path_that_cannot_be(name: str) -> None:
    with pytest.raises(BundleError):
        Bundle(name)
