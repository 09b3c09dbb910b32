"""From a checkpoint to a bundle: graphs, tokenizer, manifest and golden examples, checked against PyTorch or not written."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from camp_sdk.export.bundling import parity, precision_gate
from camp_sdk.export.bundling.cases import checks_table, reference_outputs, require
from camp_sdk.export.bundling.graphs import ExportError, export_graph, graphs_of
from camp_sdk.export.bundling.lowering import lower_graph
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint
from camp_sdk.export.network.model import Camp
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.engines.onnxruntime_engine import import_onnxruntime
from camp_sdk.runtime.engines.openvino_engine import require_bfloat16
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import followed, holds_only, is_empty, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE
from camp_sdk.runtime.manifest import (
    MANIFEST_FILE,
    PRECISION_FOLDERS,
    TOKENIZER_FILE,
    GraphSpec,
    LoweredGraphs,
    Manifest,
    write_manifest,
)
from camp_sdk.runtime.tensorrt.plans import engine_files
from camp_sdk.terminal import progress, stderr

MADE_WITH = ("camp-sdk", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
ENCODERS = ("vision", "image", "text")  # run once an image or a text, not for each pair
GOLDEN_ITEMS = 8


def export_bundle(checkpoint: Path, output: Path, precisions: Collection[str] = ()) -> Bundle:
    """Write the bundle of a checkpoint; the tables of the checks go to standard error.

    Args:
        checkpoint: a file written by training or by the import of a released checkpoint.
        output: the bundle's folder; an older bundle there is replaced when the new one is whole.
        precisions: "float16" and "bfloat16", written beside float32.

    Returns:
        The new bundle, opened.

    Raises:
        InputError: ``output`` is taken by something else.
        BundleError: the checkpoint is broken.
        ExportError: a graph is not what was meant, or does not give PyTorch's scores. Whatever is raised, nothing is left at
            ``output`` that was not there before.
    """
    check_output(output)
    import_onnxruntime("cpu")  # the gates need it: not to be missed after a minute of exporting
    if "bfloat16" in precisions:
        require_bfloat16()
    model, origin = load_checkpoint(checkpoint)
    with write_aside(followed(output)) as aside:
        aside.mkdir()
        graphs = write_graphs(model, aside)
        (aside / TOKENIZER_FILE).write_text(origin.tokenizer, encoding="utf-8")
        np.savez(aside / GOLDEN_FILE, **golden_arrays(model, origin))  # type: ignore[arg-type]  # numpy 2 types it as bool
        manifest = _manifest(origin, graphs, model.scorer.activation)
        write_manifest(aside, manifest)
        checks = parity.check_parity(model, origin, Bundle(aside))
        stderr.print(checks_table(parity.TITLE, parity.COLUMNS, checks))
        require(checks, parity.FAILURE)
        manifest = replace(manifest, parity=tuple(asdict(check) for check in checks))
        write_manifest(aside, manifest)
        for precision in precisions:
            manifest = add_precision(precision, model, origin, manifest, aside)
    return Bundle(output)


def add_precision(precision: str, model: Camp, origin: Origin, manifest: Manifest, folder: Path) -> Manifest:
    """Write the graphs of a lower precision beside the float32 ones, check them, and return the manifest with both.

    In float16, encoders stay in float32 where float16 would cost too much accuracy on the examples, unless float32 encoders
    cost even more.

    Raises:
        ExportError: scores are too far from PyTorch's.
    """

    def with_graphs(
        graphs: Mapping[str, GraphSpec], checks: Collection[precision_gate.PrecisionCheck] = ()
    ) -> Manifest:
        lowered = LoweredGraphs(dict(graphs), tuple(asdict(check) for check in checks))
        changed = replace(manifest, precisions=manifest.precisions | {precision: lowered})
        write_manifest(folder, changed)
        return changed

    def check(graphs: Mapping[str, GraphSpec]) -> list[precision_gate.PrecisionCheck]:
        with_graphs(graphs)
        found = precision_gate.check_precision(model, origin, Bundle(folder), precision)
        stderr.print(checks_table(f"{precision} {precision_gate.TITLE}", precision_gate.COLUMNS, found))
        return found

    graphs = write_lowered(precision, manifest.graphs, folder)
    checks = check(graphs)
    encoders = [name for name in ENCODERS if name in graphs]
    if encoders and not all(found.with_margin for found in checks):
        stderr.print(f"encoders in {precision} cost too much accuracy: trying {', '.join(encoders)} in float32")
        others = {name: graph for name, graph in graphs.items() if name not in encoders}
        again = check(others)
        wide = all(found.passed for found in again) or not all(found.passed for found in checks)
        stderr.print(f"{', '.join(encoders)}: {'float32' if wide else f'{precision}, which alone passed'}")
        if wide:
            for name in encoders:
                (folder / graphs[name].file).unlink()
            graphs, checks = others, again
    failure = f"the {precision} graphs are too far from PyTorch's scores"
    require(checks, failure, ". The float32 graphs passed: export without --precision")
    return with_graphs(graphs, checks)


def write_graphs(model: Camp, folder: Path) -> dict[str, GraphSpec]:
    """Write every graph of a network into a folder; returns their contract."""
    contract = {}
    for graph in progress(graphs_of(model), "exporting graphs"):
        file = f"{graph.name}.onnx"
        inputs, outputs = export_graph(graph, folder / file)
        contract[graph.name] = GraphSpec(file, tuple(inputs), tuple(outputs))
    return contract


def write_lowered(precision: str, contract: Mapping[str, GraphSpec], folder: Path) -> dict[str, GraphSpec]:
    """Write the graphs of a folder in a lower precision, too; returns their contract. bfloat16 is for the scorer alone."""
    graphs = ("scorer",) if precision == "bfloat16" else (*ENCODERS, "scorer", "explainer")
    (folder / PRECISION_FOLDERS[precision]).mkdir()
    lowered: dict[str, GraphSpec] = {}
    halves: set[str] = set()
    for name in (graph for graph in graphs if graph in contract):  # encoders first: the scorer reads what they make
        file = f"{PRECISION_FOLDERS[precision]}/{name}.onnx"
        try:
            inputs, outputs = lower_graph(folder / contract[name].file, folder / file, precision, halves)
        except ExportError as error:
            if name != "vision":  # that one may be anybody's
                raise
            stderr.print(f"the vision graph stays float32: {error}", highlight=False, soft_wrap=True)
            continue
        halves |= {spec.name for spec in outputs if spec.dtype == "float16"}
        lowered[name] = GraphSpec(file, tuple(inputs), tuple(outputs))
    return lowered


def check_output(output: Path) -> None:
    """Raise InputError if a bundle written to ``output`` would replace anything but an older bundle and its engines."""
    if not output.exists() or is_empty(output):
        return
    try:
        listed = json.loads((output / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
        mine = holds_only(output, [MANIFEST_FILE, *listed, *engine_files(output)])
    except (OSError, ValueError, KeyError, TypeError):
        mine = False
    if not mine:
        raise InputError(f"{output} exists and is not a bundle, or holds other files too: name another folder")


def golden_arrays(model: Camp, origin: Origin) -> dict[str, NDArray[np.generic]]:
    """A few real inputs and PyTorch's outputs: the self-test a target can run without PyTorch."""
    case = next(case for case in parity.parity_cases(origin) if case.name == "ragged")
    expected = reference_outputs(model, case, torch.float64)
    inputs = {"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()}
    pixels = {"pixels": case.images[:GOLDEN_ITEMS].numpy()} if origin.pixels else {}
    return inputs | pixels | {name: expected[name][:GOLDEN_ITEMS] for name in ("features", "logits")}


def _manifest(origin: Origin, graphs: dict[str, GraphSpec], activation: str) -> Manifest:
    return Manifest(
        variant=origin.model.variant,
        activation=activation,
        graphs=graphs,
        max_words=origin.open_tokenizer().max_words,
        pixels=origin.pixels,
        sizes=asdict(origin.model),
        made_with={name: version(name) for name in MADE_WITH},
        training=origin.training,
    )
