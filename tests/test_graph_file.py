"""ONNX files before an engine sees them: whatever takes its data from elsewhere is refused, wherever it hides."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from camp_sdk import BundleError
from camp_sdk.runtime import graph_file
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.graph_file import ATTRIBUTE, FUNCTION, GRAPH, MODEL, NODE, SPARSE, TENSOR, TRAINING, read_graph

MESSAGES = {
    "ModelProto": MODEL,
    "GraphProto": GRAPH,
    "NodeProto": NODE,
    "AttributeProto": ATTRIBUTE,
    "TensorProto": TENSOR,
    "SparseTensorProto": SPARSE,
    "FunctionProto": FUNCTION,
    "TrainingInfoProto": TRAINING,
}


def read(tmp_path: Path, content: bytes) -> bytes:
    path = tmp_path / "graph.onnx"
    path.write_bytes(content)
    return read_graph(HeldFile(path))


def outside(name: str = "w") -> TensorProto:
    """A tensor that an engine would read from the process's memory."""
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [1], [1.0])
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "4096"), ("length", "4")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    return tensor


def model_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    return helper.make_model(helper.make_graph([*nodes, helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y]))


def in_initializer() -> onnx.ModelProto:
    model = model_of()
    model.graph.initializer.append(outside())
    return model


def in_constant() -> onnx.ModelProto:
    return model_of(helper.make_node("Constant", [], ["w"], value=outside()))


def in_branch() -> onnx.ModelProto:
    branch = in_initializer().graph
    return model_of(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))


def in_sparse() -> onnx.ModelProto:
    model = model_of()
    model.graph.sparse_initializer.add().values.CopyFrom(outside())
    return model


def in_function() -> onnx.ModelProto:
    model = model_of()
    model.functions.add().node.append(helper.make_node("Constant", [], ["w"], value=outside()))
    return model


def in_training() -> onnx.ModelProto:
    model = model_of()
    model.training_info.add().algorithm.CopyFrom(in_initializer().graph)
    return model


def location_only() -> onnx.ModelProto:
    model = in_initializer()
    model.graph.initializer[0].ClearField("external_data")
    return model


def entries_only() -> onnx.ModelProto:
    model = in_initializer()
    model.graph.initializer[0].ClearField("data_location")
    return model


HIDDEN = [
    in_initializer,
    in_constant,
    in_branch,
    in_sparse,
    in_function,
    in_training,
    location_only,
    entries_only,
]


def test_field_numbers_are_those_of_onnx() -> None:
    """Every field that leads to a tensor is followed, and no other."""
    holding = {"TensorProto"}
    for _ in MESSAGES:  # what holds a tensor at any depth
        for name in MESSAGES:
            inner = (f.message_type.name for f in getattr(onnx, name).DESCRIPTOR.fields if f.message_type)
            if holding.intersection(inner):
                holding.add(name)
    assert holding == MESSAGES.keys()
    for name, kind in MESSAGES.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields
        expected = {
            f.number: MESSAGES[f.message_type.name]
            for f in fields
            if f.message_type and f.message_type.name in MESSAGES
        }
        assert kind.parts == expected, name
    assert TensorProto.DESCRIPTOR.fields_by_name["external_data"].number in TENSOR.refused
    assert TensorProto.DESCRIPTOR.fields_by_name["data_location"].number == graph_file.DATA_LOCATION
    assert onnx.NodeProto.DESCRIPTOR.fields_by_name["op_type"].number == graph_file.OPERATOR
    assert TensorProto.EXTERNAL == graph_file.EXTERNAL
    for name, number in (("input", graph_file.READS), ("output", graph_file.MAKES)):
        assert onnx.NodeProto.DESCRIPTOR.fields_by_name[name].number == number
    fields = onnx.AttributeProto.DESCRIPTOR.fields_by_name
    numbers = [fields[name].number for name in ("name", "i", "graphs")]
    assert numbers == [graph_file.NAME, graph_file.NUMBER, graph_file.MANY_GRAPHS]


def branch_reading(name: str) -> onnx.NodeProto:
    branch = onnx.GraphProto(node=[helper.make_node("Identity", [name], ["inner"])])
    return helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch)


CIRCLES = {
    "of one node": model_of(helper.make_node("Identity", ["a"], ["a"])),
    "of two nodes": model_of(helper.make_node("Identity", ["b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])),
    "through a branch": model_of(branch_reading("z")),
    "through a later node": model_of(branch_reading("a"), helper.make_node("Identity", ["z"], ["a"])),
    "in a branch": model_of(
        helper.make_node("If", ["x"], ["z"], then_branch=onnx.GraphProto(node=[helper.make_node("Neg", ["a"], ["a"])]))
    ),
    "in a function": onnx.ModelProto(
        graph=model_of().graph, functions=[onnx.FunctionProto(node=[helper.make_node("Neg", ["a"], ["a"])])]
    ),
}


@pytest.mark.parametrize("model", CIRCLES.values(), ids=CIRCLES)
def test_a_node_that_reads_what_is_made_later(tmp_path: Path, model: onnx.ModelProto) -> None:
    with pytest.raises(
        BundleError, match=r"graph\.onnx cannot be opened: a node of it reads what that node or a later"
    ):
        read(tmp_path, model.SerializeToString())


def test_a_circle_whose_halves_are_two_graphs(tmp_path: Path) -> None:
    """Readers join the parts of a message that is not a list."""
    halves = (model_of(helper.make_node("Neg", ["a"], ["b"])), model_of(helper.make_node("Neg", ["b"], ["a"])))
    content = b"".join(half.SerializeToString() for half in halves)
    assert len(onnx.load_from_string(content).graph.node) == 4
    with pytest.raises(BundleError, match="a model of it holds a graph in parts"):
        read(tmp_path, content)


def test_nodes_in_order(tmp_path: Path) -> None:
    """Branches read what was made before them; two branches may use the same names; an input may be left out."""
    first, clip = helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Clip", ["z", "", "a"], ["c"])
    content = model_of(first, branch_reading("a"), clip).SerializeToString()
    assert read(tmp_path, content) == content


@pytest.mark.parametrize("stated", [0, 1, 3, -1])
def test_a_split_that_states_another_number_of_outputs(tmp_path: Path, stated: int) -> None:
    """ONNX Runtime 1.32 ends the process on fewer, and OpenVINO runs more as if they were not there."""
    split = helper.make_node("Split", ["x"], ["a", ""], num_outputs=stated)
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be opened: a node of it has other outputs than"):
        read(tmp_path, model_of(split).SerializeToString())


def test_a_split_whose_number_comes_before_its_outputs(tmp_path: Path) -> None:
    halves = helper.make_node("Split", ["x"], [], num_outputs=2), onnx.NodeProto(output=["a", "b"])
    node = b"".join(half.SerializeToString() for half in halves)
    graph = b"\x0a" + _length(node) + node
    content = b"\x3a" + _length(graph) + graph
    assert list(onnx.load_from_string(content).graph.node[0].output) == ["a", "b"]
    assert read(tmp_path, content) == content
    with pytest.raises(BundleError, match="has other outputs than it states"):
        read(tmp_path, content.replace(b"\x12\x01b", b"\x1a\x01b"))  # the output's name becomes the node's


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_tensor_from_elsewhere(tmp_path: Path, hidden: Callable[[], onnx.ModelProto]) -> None:
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be opened: it holds a tensor whose data lie outside"):
        read(tmp_path, hidden().SerializeToString())


@pytest.mark.parametrize("hidden", HIDDEN)
def test_a_tensor_from_elsewhere_under_tags_of_more_bits(tmp_path: Path, hidden: Callable[[], onnx.ModelProto]) -> None:
    """Engines drop the upper bits of a tag of five bytes, and so find the field."""
    content = hidden().graph.SerializeToString()
    tag = _varint((7 << 3 | 2) + (1 << 32))
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be opened"):
        read(tmp_path, b"\x08\x0a" + tag + _length(content) + content)


def test_a_location_of_more_bits(tmp_path: Path) -> None:
    model = location_only()
    tensor = model.graph.initializer[0]
    tensor.ClearField("data_location")
    wide = b"\x70" + _varint(1 + (1 << 32))  # data_location, of which engines read the lower 32 bits
    inner = tensor.SerializeToString() + wide
    graph = b"\x2a" + _length(inner) + inner
    with pytest.raises(BundleError, match="a tensor whose data lie outside"):
        read(tmp_path, b"\x3a" + _length(graph) + graph)


def test_a_file_of_two_formats(tmp_path: Path) -> None:
    content = b"\x12\x06??ORTM" + model_of().SerializeToString()  # a producer's name, for a reader of ONNX
    assert content[4:8] == b"ORTM"
    with pytest.raises(BundleError, match="is not an ONNX model"):
        read(tmp_path, content)


def test_a_compiled_engine_inside_a_graph(tmp_path: Path) -> None:
    node = helper.make_node("EPContext", ["x"], ["z"], domain="com.microsoft", ep_cache_context="engine.plan")
    with pytest.raises(BundleError, match="it holds a compiled engine, which is a program"):
        read(tmp_path, model_of(node).SerializeToString())


def test_exported_graphs_are_read_as_they_are(feature_bundle: Path, picture_bundle: Path) -> None:
    files = [*feature_bundle.rglob("*.onnx"), *picture_bundle.rglob("*.onnx")]
    assert len(files) > 8
    for file in files:
        assert read_graph(HeldFile(file)) == file.read_bytes()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<?xml version='1.0'?><net name='other format'/>",  # OpenVINO's own format, which it also reads
        b"\x1c\x00\x00\x00TFL3",
        b"\x08\x0a",  # a version and no graph
        b"\x3a\x05",  # a graph that ends before its content
        b"\x3a\x80",  # a number that does not end
        b"\x38\x01",  # a graph that is a number
        b"\x3a" + b"\xff" * 10 + b"\x01",  # a length of more than 64 bits
        b"PK\x03\x04",
    ],
)
def test_other_files(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(BundleError, match=r"graph\.onnx cannot be opened: .*; export the bundle again"):
        read(tmp_path, content)


def test_messages_nested_without_end(tmp_path: Path) -> None:
    content = b""
    for _ in range(3000):  # a graph in an attribute of a node of a graph
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            content = tag + _length(content) + content
    with pytest.raises(BundleError, match="more than 64 levels"):
        read(tmp_path, b"\x3a" + _length(content) + content)


def _length(content: bytes) -> bytes:
    return _varint(len(content))


def _varint(size: int) -> bytes:
    out = b""
    while size > 0x7F:
        out, size = out + bytes([size & 0x7F | 0x80]), size >> 7
    return out + bytes([size])


def test_more_fields_than_any_graph_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_file, "MAX_FIELDS", 1000)
    nodes = b"\x0a\x00" * 1001
    with pytest.raises(BundleError, match="or 1000 fields"):
        read(tmp_path, b"\x3a" + _length(nodes) + nodes)


def test_damaged_files_are_read_or_refused(tmp_path: Path, feature_bundle: Path) -> None:
    """What passes has no tensor from elsewhere, as ONNX's own reader finds."""
    rng, whole = random.Random(0), in_branch().SerializeToString()
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        try:
            found = read(tmp_path, bytes(content))
        except BundleError:
            continue
        try:
            model = onnx.load_from_string(found)
        except Exception:  # protobuf has types of its own: an engine refuses the file, too
            continue
        assert b"_ORT_MEM_ADDR_" not in b"".join(
            t.SerializeToString() for t in onnx.external_data_helper._get_all_tensors(model)
        )
