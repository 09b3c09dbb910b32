"""Changes that know a file's format: zip files, .npy arrays, pickles, PNG chunks and ONNX graphs."""

from __future__ import annotations

import ast
import builtins
import io
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from random import Random
from typing import Any

import numpy as np
import onnx

from tests.fuzz.mutations import NUMBERS, mutated_bytes

CANARY = "canary"  # a file in the folder that a worker runs in; only code of a mutant makes it


class Payload:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, call: tuple[Any, ...]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


CALLS: tuple[tuple[Any, ...], ...] = (
    (os.system, f"touch {CANARY}"),
    (builtins.exec, f"open({CANARY!r}, 'w')"),
    (builtins.eval, f"open({CANARY!r}, 'w')"),
    (builtins.open, CANARY, "w"),
    (os.mkdir, CANARY),
    (builtins.getattr, os, "sep"),
    (builtins.bytearray, 1 << 33),
)


OPCODES = b"(.01IJKLMNRQTUVXabcdeghijloprstu}]){\x80\x81\x85\x88\x8a\x8c\x93\x94"


def payload(rng: Random) -> bytes:
    """A pickle that runs code when it is loaded, except by a reader that refuses to."""
    return pickle.dumps(Payload(rng.choice(CALLS[:5] + CALLS[6:])), protocol=rng.choice((0, 2, 4)))


def mutated_pickle(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a pickle: with changed bytes, changed opcodes, or code in it."""
    if rng.random() < 0.15:
        hostile = payload(rng)
        at = rng.choice((0, len(content) - 1, rng.randrange(len(content))))
        return rng.choice((hostile, content[:at] + hostile[:-1] + content[at:], content[:-1] + hostile[:-1] + b"0."))
    if rng.random() < 0.4:
        data = bytearray(content)
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(len(data))] = rng.choice(OPCODES)
        return bytes(data)
    return mutated_bytes(content, rng, other)


TYPES = ("<f4", "<f8", ">f4", "<f2", "|O", "|V12", "<U9", "<c8", "|b1", "<i8", "<M8[ns]", "f4", "")


def mutated_npy(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a .npy file: with another header, other numbers, or changed bytes."""
    choice = rng.random()
    if choice < 0.4:
        return mutated_bytes(content, rng, other)
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if choice < 0.6:
        return _with_numbers(array, rng)
    if choice < 0.7:
        return _saved(np.array([Payload(rng.choice(CALLS[:5]))], dtype=object))
    length = int.from_bytes(content[8:10], "little")
    header = ast.literal_eval(content[10 : 10 + length].decode("latin-1"))
    key = rng.choice(("descr", "fortran_order", "shape", "extra"))
    sizes = [rng.choice((size, size, *NUMBERS, -1)) for size in header["shape"]]
    header[key] = {
        "descr": rng.choice(TYPES),
        "fortran_order": rng.choice((True, False, 1, None)),
        "shape": rng.choice((tuple(sizes), tuple(sizes[:-1]), (*sizes, 1), (), (1,) * 40, sizes, 10**400, "x")),
        "extra": 1,
    }[key]
    text = (repr(header) + " " * rng.choice((0, 5, 70_000 if rng.random() < 0.1 else 0))).encode("latin-1") + b"\n"
    version = rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\4\0"))
    size = struct.pack("<I", len(text))[: 2 if version == b"\1\0" else 4]
    return content[:6] + version + size + text + content[10 + length :]


def _with_numbers(array: Any, rng: Random) -> bytes:
    """The array with some extreme values, or of other sizes."""
    array = np.array(array)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rng.random() < 0.5:
            flat = array.reshape(-1)
            extremes = (
                (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0) if array.dtype.kind == "f" else (-1, 0, 1, 2**62, 100)
            )
            for _ in range(rng.choice((1, 3))):
                flat[rng.randrange(flat.size)] = np.array(rng.choice(extremes)).astype(array.dtype)
        else:
            axis = rng.randrange(array.ndim)
            array = np.repeat(array, rng.choice((0, 2, 3)), axis) if rng.random() < 0.5 else array.take([0], axis)
        return _saved(array.astype(rng.choice((array.dtype, array.dtype, np.float64, np.float16, np.int64))))


def _saved(array: Any) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def mutated_zip(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a zip file: with a member changed, dropped, renamed, deflated or doubled, or with false sizes."""
    if rng.random() < 0.25:
        return mutated_bytes(content, rng, other)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, inner = members[at]
    packing = zipfile.ZIP_STORED
    change = rng.choice(("content", "content", "content", "drop", "rename", "deflate", "double", "bomb", "sizes"))
    if change == "content":
        special = mutated_npy if name.endswith(".npy") else mutated_pickle if name.endswith(".pkl") else mutated_bytes
        members[at] = name, special(inner, rng) if inner else inner
    elif change == "drop":
        del members[at]
    elif change == "rename":
        members[at] = rng.choice((f"../{name}", f"/{name}", name.upper(), "x" * 3000, "")), inner
    elif change == "deflate":
        packing = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    elif change == "double":
        members.insert(0, (name, rng.choice((b"", inner[::-1], mutated_bytes(inner, rng)))))
    elif change == "bomb":
        packing = zipfile.ZIP_DEFLATED
        members[at] = name, inner[:80] + bytes(200 << 20 if rng.random() < 0.05 else 2 << 20)
    written = _zipped(members, packing)
    return _false_sizes(written, rng) if change == "sizes" else written


def _zipped(members: list[tuple[str, bytes]], packing: int) -> bytes:
    target = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(target, "w", packing, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # two members of one name are meant
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, packing)
    return target.getvalue()


# Of the directory, of a member's header and of the end: how each begins, and where its numbers are.
SIZES = (
    (b"PK\1\2", (8, 10, 16, 20, 24, 28, 30, 34, 42)),
    (b"PK\3\4", (6, 8, 14, 18, 22, 26)),
    (b"PK\5\6", (4, 8, 10, 12, 16, 20)),
)


def _false_sizes(content: bytes, rng: Random) -> bytes:
    """The file with a number of its directory, or of a member's header, that is not true."""
    data = bytearray(content)
    start, offsets = rng.choice(SIZES)
    places = [at for at in range(len(data)) if data[at : at + 4] == start]
    at = rng.choice(places) + rng.choice(offsets)
    size = rng.choice((2, 4))
    data[at : at + size] = struct.pack("<Q", rng.choice(NUMBERS) % (1 << 64))[:size]
    return bytes(data)


def mutated_png(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of a PNG with one chunk changed, dropped, doubled or moved, and its checksum right."""
    if rng.random() < 0.3:
        return mutated_bytes(content, rng, other)
    chunks, at = [], 8
    while at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    place = rng.randrange(len(chunks))
    kind, body = chunks[place]
    change = rng.choice(("body", "body", "body", "drop", "double", "kind", "move"))
    if change == "body":
        chunks[place] = kind, mutated_bytes(body, rng)
    elif change == "drop":
        del chunks[place]
    elif change == "double":
        chunks.insert(rng.randrange(len(chunks)), chunks[place])
    elif change == "kind":
        chunks[place] = (
            rng.choice((b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"eXIf", b"zTXt", b"zzzz")),
            body,
        )
    else:
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return content[:8] + b"".join(packed)


def mutated_graph(content: bytes, rng: Random, other: bytes = b"") -> bytes:
    """A copy of an ONNX graph: with a node, an attribute or a weight changed, or with changed bytes."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng, other)
    model = onnx.load_from_string(content)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2))):
        change = rng.choice((_change_node, _change_attribute, _change_weight, _change_weight, _change_ends))
        change(graph, rng)
    return bytes(model.SerializeToString())


OPERATORS = ("Identity", "Exp", "Log", "Loop", "If", "Tile", "Expand", "EPContext", "MatMul", "Reshape", "NoSuch", "")


def _change_node(graph: Any, rng: Random) -> None:
    node, other = rng.choice(graph.node), rng.choice(graph.node)
    change = rng.choice(("operator", "domain", "input", "drop", "swap", "copy"))
    if change == "operator":
        node.op_type = rng.choice((*OPERATORS, other.op_type))
    elif change == "domain":
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "no.such"))
    elif change == "input" and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice((*other.output, *other.input, ""))
    elif change == "drop":
        graph.node.remove(node)
    elif change == "copy":
        graph.node.append(node)
    else:
        kept, own = onnx.NodeProto.FromString(node.SerializeToString()), node
        own.CopyFrom(other)
        other.CopyFrom(kept)


def _change_attribute(graph: Any, rng: Random) -> None:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if not attributes:
        return
    attribute = rng.choice(attributes)
    number = rng.choice((*NUMBERS, -2, -(2**63)))
    if attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = number
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((float("nan"), float("inf"), -1.0, 0.0, 3e38))
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = number
    else:
        attribute.name += "s"


def _change_weight(graph: Any, rng: Random) -> None:
    tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    change = rng.choice(("dims", "type", "content", "numbers", "outside"))
    if change == "dims":
        tensor.dims[:] = [rng.choice((size, *NUMBERS)) for size in tensor.dims] + [1] * rng.choice((0, 0, 1))
    elif change == "type":
        tensor.data_type = rng.choice((0, 1, 2, 6, 7, 8, 9, 10, 16, 23, 99))
    elif change == "outside":
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(("../x", "/etc/passwd", "*/_ORT_MEM_ADDR_/*")))
    elif change == "numbers" and tensor.data_type == onnx.TensorProto.INT64:
        values = onnx.numpy_helper.to_array(tensor).copy().reshape(-1)
        if values.size:
            values[rng.randrange(values.size)] = rng.choice((*NUMBERS, -2))
            tensor.raw_data = values.tobytes()
    else:
        tensor.raw_data = mutated_bytes(tensor.raw_data, rng)


def _change_ends(graph: Any, rng: Random) -> None:
    value = rng.choice((*graph.input, *graph.output))
    shape = value.type.tensor_type.shape
    change = rng.choice(("name", "type", "size", "drop"))
    if change == "name":
        value.name += "s"
    elif change == "type":
        value.type.tensor_type.elem_type = rng.choice((0, 1, 7, 8, 10, 99))
    elif change == "size" and shape.dim:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    elif change == "drop":
        (graph.input if value in graph.input else graph.output).remove(value)
