"""Removes from a graph everything that only describes the machine and the programs that made it.

Exporters write the stack trace of every operator into its metadata, with the paths of source files. No engine reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx


def anonymise(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Clear metadata, comments and the producer of a model, in place; what it computes stays.

    Args:
        model: the model, which is also returned.
        name: the new name of its graph.
    """
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    _clear(model)
    for function in model.functions:
        _clear(function)
        _clear_nodes(function.node)
        _clear_all(function.value_info)
    for graph in _graphs(model.graph):
        _clear(graph)
        _clear_nodes(graph.node)
        for values in (graph.input, graph.output, graph.value_info, graph.initializer):
            _clear_all(values)
        for sparse in graph.sparse_initializer:
            _clear_all((sparse.values, sparse.indices))
    model.graph.name = name
    return model


def anonymous_bytes(graph: bytes, name: str) -> bytes:
    """An ONNX file of the user's without metadata, comments, producer and names of nodes.

    Args:
        graph: the content of the file.
        name: the new name of its graph.
    """
    model = anonymise(onnx.load_from_string(graph), name)
    for inner in (*_graphs(model.graph), *model.functions):
        for node in inner.node:
            node.ClearField("name")
    return bytes(model.SerializeToString())


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the graphs of its branches and loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _clear_nodes(nodes: Any) -> None:
    for node in nodes:
        _clear(node)
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            _clear_all([attribute.t] if attribute.HasField("t") else [])
            _clear_all(attribute.tensors)


def _clear_all(items: Any) -> None:
    for item in items:
        _clear(item)


def _clear(item: Any) -> None:
    item.ClearField("doc_string")
    item.ClearField("metadata_props")
