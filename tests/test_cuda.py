"""Device memory, staging and errors of CUDA: on a stand-in, without a driver, and on a GPU where there is one."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from camp_sdk import BackendError
from camp_sdk.runtime.engines import cuda
from camp_sdk.runtime.errors import MissingExtraError
from tests.helpers.fake_cuda import FakeCuda, install

pytestmark = pytest.mark.usefixtures("young_garbage")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    fake, _ = install(monkeypatch)
    yield fake
    gc.collect()
    assert fake.held == 0


def held(array: np.ndarray) -> cuda.DeviceArray:
    return upload({"a": array}, array.dtype)["a"]


def upload(arrays: dict[str, np.ndarray], dtype: np.dtype) -> dict[str, cuda.DeviceArray]:
    uploader = cuda.Uploader()
    try:
        return uploader.upload(arrays, dict.fromkeys(arrays, dtype))
    finally:
        uploader.close()


def check_arrays() -> None:
    """What must hold of device arrays, whatever the device."""
    array = np.arange(5 * 3 * 4, dtype=np.int64).reshape(5, 3, 4)
    there = held(array)
    assert (there.shape, there.dtype, there.nbytes, len(there)) == (array.shape, array.dtype, array.nbytes, 5)
    np.testing.assert_array_equal(np.asarray(there), array)
    for part in (slice(1, 4), slice(2), slice(-2, None), slice(4, 2), slice(0, 99)):
        np.testing.assert_array_equal(np.asarray(there[part]), array[part])
    assert there[1:4][1:].address == there.address + 2 * 3 * 4 * 8
    np.testing.assert_array_equal(np.asarray(there[1:4][1:]), array[2:4])


def test_arrays_and_views(fake: FakeCuda) -> None:
    check_arrays()


def test_long_uploads_go_in_parts(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "STAGING_BYTES", 100)
    check_arrays()
    array = np.random.default_rng(0).standard_normal((7, 300))
    np.testing.assert_array_equal(np.asarray(upload({"a": array}, np.dtype("f2"))["a"]), array.astype("f2"))


@pytest.mark.parametrize("part", [slice(0, 4, 2), 1, None])
def test_only_slices_along_the_first_axis(fake: FakeCuda, part: object) -> None:
    with pytest.raises(TypeError, match="takes a slice without a step along axis 0"):
        held(np.zeros((4, 2)))[part]  # type: ignore[index]  # what the test is about


def test_a_view_keeps_the_memory_and_closing_frees_it(fake: FakeCuda) -> None:
    view = held(np.ones((4, 2)))[1:3]
    np.testing.assert_array_equal(np.asarray(view), np.ones((2, 2)))
    assert len(fake.device) == 1
    view.close()
    assert len(fake.device) == 0
    with pytest.raises(BackendError, match="was freed"):
        _ = view.address


def test_an_upload_that_fails_leaves_nothing(fake: FakeCuda) -> None:
    fake.room = 100
    arrays = {"a": np.zeros(10), "b": np.zeros(10)}
    with pytest.raises(BackendError, match=r"out of memory \(512 bytes were asked for\): set memory_budget_bytes"):
        upload(arrays, np.dtype("f8"))


def test_an_uploader_allocates_once_for_all_arrays(fake: FakeCuda) -> None:
    uploader, arrays = cuda.Uploader(), {"a": np.arange(3.0), "b": np.arange(70.0), "other": np.arange(2.0)}
    dtypes = {"a": np.dtype("f4"), "b": np.dtype("f8")}
    for made in (3, 4):  # the first time, two for page-locked memory that grows
        there = uploader.upload(arrays, dtypes)
        assert there.keys() == dtypes.keys()
        for name, array in there.items():
            assert array.address % 256 == 0
            np.testing.assert_array_equal(np.asarray(array), arrays[name])
        assert fake.allocations == made
    uploader.close()


def test_files_in_memory_count_as_free_where_the_gpu_shares_it(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cuda, "MEMORY_FILE", tmp_path / "meminfo")
    fake.room = 1000
    (tmp_path / "meminfo").write_text("MemTotal:    9 kB\nMemAvailable:    5 kB\n")
    assert cuda.room_bytes() == 600
    fake.integrated = True
    assert cuda.room_bytes() == 5 * 1024 * 60 // 100
    (tmp_path / "meminfo").unlink()
    assert cuda.room_bytes() == 600


def test_recorded_work_is_done_when_it_is_replayed(fake: FakeCuda) -> None:
    source, target = held(np.arange(4)), held(np.zeros(4, np.int64))
    with cuda.Stream() as stream:

        def copy() -> None:
            stream.copy(target.address, source.address, source.nbytes, "cudaMemcpyDeviceToDevice")

        recording = stream.record(copy)
        stream.synchronize()
        np.testing.assert_array_equal(np.asarray(target), np.zeros(4))
        recording.replay()
        stream.synchronize()
        np.testing.assert_array_equal(np.asarray(target), np.arange(4))
        recording.close()


def test_what_cannot_be_recorded_leaves_the_stream_as_it_was(fake: FakeCuda) -> None:
    def fails() -> None:
        raise BackendError("refused")

    with cuda.Stream() as stream:
        for work, message in ((stream.synchronize, "not permitted"), (fails, "refused")):
            with pytest.raises(BackendError, match=message):
                stream.record(work)
            stream.synchronize()


def test_what_the_device_is(fake: FakeCuda) -> None:
    assert cuda.gpu() == cuda.Gpu("Fake GPU", "8.7", "13.0", "12.6", fake.room)


def test_no_device(fake: FakeCuda) -> None:
    fake.devices = 0
    with pytest.raises(
        BackendError, match=r"no NVIDIA GPU can be used here \(the driver lists none\): check that nvidia-smi"
    ):
        cuda.gpu()


def test_no_driver(fake: FakeCuda) -> None:
    fake.driver = False
    with pytest.raises(BackendError, match="cudaGetDeviceCount failed: CUDA driver version is insufficient"):
        cuda.gpu()


def test_a_release_that_raises_where_there_is_no_driver(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(fake, "cudaGetDeviceCount", fails)
    with pytest.raises(BackendError, match=r"no NVIDIA GPU can be used here .*Failed to dlopen"):
        cuda.gpu()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"cuda-bindings is not installed; .* pip install '\.\[tensorrt\]'"):
        cuda.gpu()


def test_the_stand_in_has_no_name_that_the_real_one_lacks() -> None:
    real = pytest.importorskip("cuda.bindings.runtime")
    fake = FakeCuda()
    names = {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert {name for name in names if not hasattr(real, name)} == set()
    for kind in ("cudaError_t", "cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        assert {member.name for member in getattr(fake, kind)} <= set(getattr(real, kind).__members__)


# The real one


def gpu_missing() -> str:
    try:
        cuda.gpu()
    except BackendError as error:
        return str(error)
    return ""


def test_the_process_lives_without_a_gpu() -> None:
    if not gpu_missing():
        pytest.skip("there is a GPU")
    attempt = "try: cuda.gpu()\nexcept Exception as error: print(type(error).__name__, error)"
    code = f"from camp_sdk.runtime.engines import cuda\n{attempt}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Error" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.gpu
@pytest.mark.skipif(bool(gpu_missing()), reason=gpu_missing())
def test_arrays_and_views_on_a_gpu() -> None:
    assert cuda.gpu().total_bytes > cuda.room_bytes() > 0
    check_arrays()
