"""Read an ONNX file as far as needed to know that it is one, and that it holds all of its weights itself.

An ONNX file may name other files, or places in memory, as the source of a tensor, and engines follow such names. The
runtime has no ONNX library, so this module walks the file's fields (protobuf's wire format) and skips what it does not
need. It also refuses two faults that the format forbids, and that stop or end an engine's process: nodes that read what
they or later nodes make (OpenVINO never returns from a graph with a circle), and a `Split` that has other outputs than
it states (ONNX Runtime reads past the end of a list). Field numbers are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from camp_sdk.runtime.errors import BundleError
from camp_sdk.runtime.files import HeldFile
from camp_sdk.runtime.manifest import EXPORT_AGAIN

MAX_DEPTH = 64  # of messages inside messages; protobuf's own readers stop at 100
MAX_FIELDS = 2_000_000  # of messages that may hold a tensor; read in about two seconds
VARINT, EIGHT_BYTES, MESSAGE, FOUR_BYTES = 0, 1, 2, 5  # wire types
MAX_VARINT_BYTES = 10
MAX_TAG = (1 << 32) - 1
OTHER_FORMAT = b"ORTM"  # at bytes 4 to 7 of a file in ONNX Runtime's own format, which it would read as such


@dataclass
class _Kind:
    """A kind of message.

    Args:
        name: its name, for messages.
        parts: the fields that hold messages in which a tensor may be, with their kinds.
        refused: the fields that may not occur, with the reason.
    """

    name: str
    parts: dict[int, _Kind] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)


OUTSIDE = "a tensor whose data lie outside of the file"
TENSOR = _Kind("tensor", refused={13: OUTSIDE})
DATA_LOCATION, EXTERNAL = 14, 1
SPARSE = _Kind("sparse tensor", {1: TENSOR, 2: TENSOR})
NODE, ATTRIBUTE, GRAPH = _Kind("node"), _Kind("attribute"), _Kind("graph")
GRAPH.parts = {1: NODE, 5: TENSOR, 15: SPARSE}
NODE.parts = {5: ATTRIBUTE}
ATTRIBUTE.parts = {5: TENSOR, 6: GRAPH, 10: TENSOR, 11: GRAPH, 22: SPARSE, 23: SPARSE}
FUNCTION = _Kind("function", {7: NODE, 11: ATTRIBUTE})
TRAINING = _Kind("training information", {1: GRAPH, 2: GRAPH})
MODEL = _Kind("model", {7: GRAPH, 20: TRAINING, 25: FUNCTION})
OPERATOR, ENGINE_OPERATOR = 4, b"EPContext"  # holds or names a compiled engine, which is a program
READS, MAKES = 1, 2  # the names of a node's inputs and outputs
NAME, NUMBER = 1, 3  # of an attribute: its name, and its value if that is a whole number
OUTPUTS = b"num_outputs"  # the attribute of a Split that states how many outputs it has
MANY_GRAPHS = 11  # the field of an attribute that may hold several; readers join those in other fields to one


class _WireError(ValueError):
    """Bytes that are not a message."""


def read_graph(file: HeldFile) -> bytes:
    """The content of an ONNX file, for an engine to open.

    Args:
        file: the file.

    Raises:
        BundleError: the file is not an ONNX model, takes data from elsewhere, or holds a compiled engine.
    """
    content = file.read()
    try:
        if content[4:8] == OTHER_FORMAT:
            raise _WireError("it is not an ONNX model")
        _check(memoryview(content))
    except _WireError as error:
        raise BundleError(f"{file.path} cannot be opened: {error}; {EXPORT_AGAIN}") from None
    return content


@dataclass
class _Open:
    """A message that is being read.

    Args:
        kind: its kind.
        fields: what is left of it, as `_parts` yields it.
        reads: the names that its nodes read so far.
        makes: the names that its nodes make so far.
        graphs: the fields in which there was a graph.
        name: of an attribute, its name.
        number: of an attribute, its value as the bytes of a number.
        outputs: of a node, how many outputs it has.
        stated: of a node, how many outputs its attributes say that it has.
    """

    kind: _Kind
    fields: Iterator[tuple[int, memoryview, _Kind | None]]
    reads: set[bytes] = field(default_factory=set)
    makes: set[bytes] = field(default_factory=set)
    graphs: set[int] = field(default_factory=set)
    name: bytes = b""
    number: bytes = b"\0"  # 0, which stands for a number that is left out
    outputs: int = 0
    stated: set[int] = field(default_factory=set)


def _check(content: memoryview) -> None:
    open_messages = [_Open(MODEL, _parts(content, MODEL))]  # from the outermost to the innermost
    fields = graphs = 0
    while open_messages:
        innermost = open_messages[-1]
        for number, part, kind in innermost.fields:
            fields += 1
            graphs += kind is GRAPH
            if kind is GRAPH:
                _note_graph(innermost, number)
            if kind is not None:
                open_messages.append(_Open(kind, _parts(part, kind)))
                break
            _note(innermost, number, part)
        else:
            open_messages.pop()
            if open_messages:
                _close(innermost, open_messages[-1])
        if len(open_messages) > MAX_DEPTH or fields > MAX_FIELDS:
            raise _WireError(f"it has more than {MAX_DEPTH} levels or {MAX_FIELDS} fields")
    if not graphs:
        raise _WireError("it is not an ONNX model, which holds a graph")


def _note(message: _Open, number: int, part: memoryview) -> None:
    """Keep what is needed of a field that holds no tensor."""
    if message.kind is NODE and number in (READS, MAKES):
        message.outputs += number == MAKES
        if len(part):  # an input may be left out
            (message.reads if number == READS else message.makes).add(bytes(part))
    elif message.kind is ATTRIBUTE and number == NAME:
        message.name = bytes(part)
    elif message.kind is ATTRIBUTE and number == NUMBER:
        message.number = bytes(part)


def _note_graph(message: _Open, number: int) -> None:
    if number in message.graphs and (message.kind is not ATTRIBUTE or number != MANY_GRAPHS):
        raise _WireError(f"a {message.kind.name} of it holds a graph in parts")
    message.graphs.add(number)


def _close(message: _Open, around: _Open) -> None:
    """Note the names of a message that was read to its end in the message around it, and check their order."""
    if message.kind is not NODE:  # a graph in an attribute of a node also reads what the graph around that node makes
        around.reads |= message.reads - message.makes
        if message.name == OUTPUTS:
            around.stated.add(_varint(memoryview(message.number), 0)[0])
        return
    if message.stated - {message.outputs}:
        raise _WireError("a node of it has other outputs than it states")
    around.reads |= message.reads
    if not around.reads.isdisjoint(message.makes - around.makes):
        raise _WireError("a node of it reads what that node or a later one makes")
    around.makes |= message.makes


def _parts(message: memoryview, kind: _Kind) -> Iterator[tuple[int, memoryview, _Kind | None]]:
    """Each field of a message: its number, its content, and its kind if it is a message that may hold a tensor."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag > MAX_TAG:  # other readers drop the upper bits, and would take it for another field
            raise _WireError("it is not an ONNX model")
        number, wire_type = tag >> 3, tag & 7
        if number in kind.refused:
            raise _WireError(f"it holds {kind.refused[number]}")
        if number in kind.parts and wire_type != MESSAGE:
            raise _WireError(f"field {number} of a {kind.name} is not a message")
        start, at, value = _skip(message, at, wire_type)
        if kind is TENSOR and number == DATA_LOCATION and value & 0xFFFFFFFF == EXTERNAL:
            raise _WireError(f"it holds {OUTSIDE}")
        if kind is NODE and number == OPERATOR and message[start:at] == ENGINE_OPERATOR:
            raise _WireError("it holds a compiled engine, which is a program")
        yield number, message[start:at], kind.parts.get(number)


def _skip(message: memoryview, at: int, wire_type: int) -> tuple[int, int, int]:
    """Where a field's content starts and ends, and its value if it is a number."""
    value = 0
    start = at
    if wire_type == VARINT:
        value, at = _varint(message, at)
    elif wire_type == MESSAGE:
        length, start = _varint(message, at)
        at = start + length
    elif wire_type in (EIGHT_BYTES, FOUR_BYTES):
        at += 8 if wire_type == EIGHT_BYTES else 4
    else:
        raise _WireError("it is not an ONNX model")
    if at > len(message):
        raise _WireError("it is truncated, or not an ONNX model")
    return start, at, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where the next field begins."""
    value = 0
    for place, byte in enumerate(message[at : at + MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return value, at + place + 1
    raise _WireError("it is truncated, or not an ONNX model")
