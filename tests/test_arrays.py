"""Array files: what numpy writes is read as numpy reads it, and everything else is one error."""

from __future__ import annotations

import io
import os
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy
from numpy.typing import NDArray

from camp_sdk import BundleError
from camp_sdk.runtime.arrays import HEADER_LIMIT, map_array, read_member

GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 5, 12), }"
FLOATS = np.arange(60, dtype=np.float32).reshape(1, 5, 12)


def file_with(header: str | bytes, content: bytes = FLOATS.tobytes(), version: bytes = b"\x01\x00") -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    return b"\x93NUMPY" + version + len(raw).to_bytes(2 if version[0] == 1 else 4, "little") + raw + content


def opened(tmp_path: Path, content: bytes) -> NDArray[Any]:
    (tmp_path / "x.npy").write_bytes(content)
    return map_array(tmp_path / "x.npy", "copy it again")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8", ">f8"])
def test_numbers_are_read_as_they_were_written(tmp_path: Path, dtype: str, order: str) -> None:
    written = np.asarray(np.arange(24).reshape(2, 3, 4) % 7, dtype, order=order)  # type: ignore[call-overload]  # "C" or "F"
    np.save(tmp_path / "x.npy", written)
    found = map_array(tmp_path / "x.npy", "copy it again")
    assert isinstance(found, np.memmap)
    assert (found.dtype, found.mode, found.flags.f_contiguous) == (np.dtype(dtype), "r", order == "F")
    np.testing.assert_array_equal(found, written)


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (1,) * 32])
def test_any_shape_is_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape, np.float32))
    found = map_array(tmp_path / "x.npy", "copy it again")
    assert found.shape == shape
    assert (found == 1).all()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        npy.write_array(file, FLOATS, version)
    np.testing.assert_array_equal(map_array(tmp_path / "x.npy", "copy it again"), FLOATS)


@pytest.mark.parametrize(
    "header",
    [
        "{'shape': (1, 5, 12), 'fortran_order': False, 'descr': '<f4'}",
        "{'descr':'<f4','fortran_order':False,'shape':(1,5,12)}",
        '{"descr": "<f4", "fortran_order": False, "shape": (1, 5, 12,)}  \n',
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1L, 5L, 12L), }\n",
        GOOD.replace("<f4", "f4"),
        GOOD.replace("<f4", "=f4"),
        GOOD.replace("<f4", "float32"),
        "{u'descr': u'<f4', u'fortran_order': False, u'shape': (1, 5, 12), }",
        GOOD + "\r\n",
        GOOD + "\t\n",
        GOOD.replace("{", "{ "),
        " " + GOOD,
    ],
)
def test_headers_of_other_writers_are_read(tmp_path: Path, header: str) -> None:
    np.testing.assert_array_equal(opened(tmp_path, file_with(header)), FLOATS)


BROKEN = {
    "empty": b"",
    "magic alone": b"\x93NUMPY",
    "another program's": b"not numpy at all",
    "version": file_with(GOOD, version=b"\x04\x00"),
    "endless header": b"\x93NUMPY\x02\x00" + (HEADER_LIMIT + 1).to_bytes(4, "little") + b" " * (HEADER_LIMIT + 1),
    "short header": file_with(GOOD)[:40],
    "truth value": file_with(GOOD.replace("(1,", "(True,")),
    "nested": file_with("(" * 500),
    "huge axis": file_with(GOOD.replace("(1,", f"({'9' * 23},")),
    "huge product": file_with(GOOD.replace("(1, 5, 12)", f"({10**18}, {10**18}, 0)"), b""),
    "negative": file_with(GOOD.replace("(1,", "(-1,")),
    "unfinished": file_with(GOOD.removesuffix("}")),
    "numbers left over": file_with(GOOD.replace("(1,", "(0,")),
    "numbers missing": file_with(GOOD)[:-1],
    "many axes": file_with(GOOD.replace("(1, 5, 12)", f"({'1, ' * 33})"), b"\0" * 4),
    "no tuple": file_with(GOOD.replace("(1, 5, 12)", "(60)")),
    "a list": file_with(GOOD.replace("(1, 5, 12)", "[1, 5, 12]")),
    "a call": file_with(GOOD.replace("(1, 5, 12)", "exit()")),
    "a key twice": file_with(GOOD.replace("}", "'shape': (1, 5, 12)}")),
    "a key less": file_with("{'descr': '<f4', 'shape': (1, 5, 12)}"),
    "another key": file_with(GOOD.replace("fortran_order", "order")),
    "swapped values": file_with(GOOD.replace("'<f4'", "False").replace("order': False", "order': '<f4'")),
    "objects": file_with(GOOD.replace("<f4", "|O")),
    "structured": file_with(GOOD.replace("'<f4'", "[('a', '<f4')]")),
    "text": file_with(GOOD.replace("<f4", "<U1")),
    "complex": file_with(GOOD.replace("<f4", "<c8")),
    "no such type": file_with(GOOD.replace("<f4", "<f1")),
    "no byte order": file_with(GOOD.replace("<f4", "|f4")),
    "indented": file_with(" \n\t" + GOOD),
    "not latin": file_with(b"\xff" * 64),
    "much white space": file_with(b"\x02\x00", b"") + b" " * 9,
    "white space in the middle": file_with("{" + " " * 60_000 + "'descr'" + " " * 5_000),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_error_that_names_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"x\.npy cannot be opened as a \.npy file \(.*\); copy it again$") as raised:
        opened(tmp_path, BROKEN[name])
    assert len(str(raised.value).removeprefix(str(tmp_path))) < 300


def test_a_missing_file_and_a_folder_are_the_same_error(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.npy", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(BundleError, match=r"cannot be opened as a \.npy file"):
            map_array(path, "copy it again")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    with pytest.raises(BundleError, match="it is not a file"):
        map_array(tmp_path / "x.npy", "copy it again")


def by_numpy(content: bytes) -> NDArray[Any]:
    return np.asarray(npy.read_array(io.BytesIO(content), allow_pickle=False))


@pytest.mark.filterwarnings("ignore")  # numpy's own reader warns of what it finds
def test_damage_gives_one_error_or_what_numpy_reads(tmp_path: Path) -> None:
    """Bytes of a header are changed, removed, repeated or exchanged with those that headers are made of."""
    rng = random.Random(0)
    stream = io.BytesIO()
    npy.write_array(stream, FLOATS, (1, 0))
    whole, read = stream.getvalue(), 0
    signs = b"0123456789,()[]{}'\"<>|=fiuOL-:TrueFals \n\\\x00\xff"
    for _ in range(800):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 2)):
            at, other = rng.randrange(128), rng.randrange(128)
            change = rng.randrange(4)
            if change == 0:
                content[at] = rng.choice(signs)
            elif change == 1:
                del content[at]
            elif change == 2:
                content.insert(at, rng.choice(signs))
            else:
                content[at], content[other] = content[other], content[at]
        try:
            found = opened(tmp_path, bytes(content))
        except BundleError:
            continue
        read += 1
        expected = by_numpy(bytes(content))
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    assert read  # not everything is refused


# Members of zip files


def archive_of(tmp_path: Path, content: bytes) -> zipfile.ZipFile:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", content)
    return zipfile.ZipFile(tmp_path / "x.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_member_is_read(tmp_path: Path, order: str) -> None:
    np.savez_compressed(tmp_path / "x.npz", x=np.asarray(FLOATS, order=order))  # type: ignore[call-overload]  # "C" or "F"
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        np.testing.assert_array_equal(read_member(archive, "x", FLOATS.nbytes), FLOATS)


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "endless header"])
def test_a_broken_member_is_refused(tmp_path: Path, name: str) -> None:
    with archive_of(tmp_path, BROKEN[name]) as archive, pytest.raises(ValueError, match=r"^x "):
        read_member(archive, "x", 1 << 20)


def test_a_member_above_the_limit_is_not_unpacked(tmp_path: Path) -> None:
    content = file_with(GOOD.replace("(1,", "(100000,"), bytes(240 * 100_000))
    with archive_of(tmp_path, content) as archive:
        assert (tmp_path / "x.npz").stat().st_size < 1 << 20
        with pytest.raises(ValueError, match=r"x has the shape \(100000, 5, 12\): expected 1 to 1024 bytes"):
            read_member(archive, "x", 1 << 10)
