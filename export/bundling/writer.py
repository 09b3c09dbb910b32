"""Exports a checkpoint as a bundle: graphs, tokenizer, manifest and golden examples.

A bundle is written only if its graphs give PyTorch's scores.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from camp_sdk.combination import WEIGHT
from camp_sdk.export.bundling import coarse_gate, parity, precision_gate
from camp_sdk.export.bundling.cases import checks_table, figures_of, reference_outputs, require
from camp_sdk.export.bundling.coarse_gate import calibration_feeds, check_coarse, error_of
from camp_sdk.export.bundling.example_inputs import caption_example, picture_example
from camp_sdk.export.bundling.graphs import export_graph, graphs_of
from camp_sdk.export.bundling.lowering import lower_graph
from camp_sdk.export.bundling.onnx_files import ExportError
from camp_sdk.export.bundling.quantising import largest_inputs, quantise_graph
from camp_sdk.export.network.camp import Scorer
from camp_sdk.export.network.checkpoint import Origin, load_checkpoint
from camp_sdk.export.network.model import Camp
from camp_sdk.export.network.networks import import_network, network_named
from camp_sdk.runtime.backends import is_fast
from camp_sdk.runtime.bundle import Bundle
from camp_sdk.runtime.contract import GraphSpec
from camp_sdk.runtime.engines.onnxruntime_engine import import_onnxruntime
from camp_sdk.runtime.engines.openvino_engine import require_bfloat16
from camp_sdk.runtime.errors import BundleError, InputError
from camp_sdk.runtime.files import followed, holds_only, is_empty, write_aside
from camp_sdk.runtime.golden import GOLDEN_FILE
from camp_sdk.runtime.lowered import COARSE, FIRST_PASSES, INT8, PRECISION_FOLDERS, LoweredGraphs
from camp_sdk.runtime.manifest import (
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Manifest,
    write_manifest,
)
from camp_sdk.runtime.manifest_values import FirstStage
from camp_sdk.runtime.tensorrt.plans import engine_files
from camp_sdk.terminal import progress, stderr

MADE_WITH = ("camp-sdk", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")
ENCODERS = ("vision", "image", "text")  # run once per image or text, not per pair
GOLDEN_ITEMS = 8
WITHOUT = ". The float32 graphs passed: export without --precision"
SHORTLIST = 200  # scored by default, where the global vectors come from a pretrained network


def export_bundle(
    checkpoint: Path, output: Path, precisions: Collection[str] = (), network: str | None = None
) -> Bundle:
    """Write the bundle of a checkpoint, and print the tables of the checks to standard error.

    Args:
        checkpoint: a file written by training or by the import of a released checkpoint.
        output: the bundle's folder; an older bundle there is replaced once the new one is complete.
        precisions: the precisions to add to float32: any of "float16", "bfloat16", "int8" and "float8".
        network: the network of the checkpoint, as `import_network` takes it. Default: it is one of this package, or was
            added before.

    Returns:
        The new bundle, opened.

    Raises:
        InputError: ``output`` holds something other than an older bundle, or there is no such network.
        BundleError: the checkpoint is broken.
        ExportError: a graph is wrong, or does not give PyTorch's scores. After any error, ``output`` is unchanged.
    """
    check_output(output)
    import_onnxruntime("cpu")  # the gates need it: fail now, not after a minute of exporting
    if "bfloat16" in precisions:
        require_bfloat16()
    name = import_network(network) if network else None
    model, origin = load_checkpoint(checkpoint)
    if name and network_named(name) is not network_named(origin.model.variant):
        raise InputError(f"`network` {name}: {checkpoint} holds the network {origin.model.variant}")
    first_stage = _first_stage(origin) if origin.model.backbone else None
    with write_aside(followed(output)) as aside:
        aside.mkdir()
        graphs = write_graphs(model, aside)
        (aside / TOKENIZER_FILE).write_text(origin.tokenizer, encoding="utf-8")
        np.savez(aside / GOLDEN_FILE, **golden_arrays(model, origin))  # type: ignore[arg-type]  # numpy expects bool
        manifest = replace(_manifest(origin, graphs, model.scorer), first_stage=first_stage)
        write_manifest(aside, manifest)
        checks = parity.check_parity(model, origin, Bundle(aside))
        stderr.print(checks_table(parity.TITLE, parity.COLUMNS, checks))
        require(checks, parity.FAILURE)
        manifest = replace(manifest, parity=tuple(figures_of(check) for check in checks))
        write_manifest(aside, manifest)
        for precision in precisions:
            manifest = add_precision(precision, model, origin, manifest, aside)
    return Bundle(output)


def add_precision(precision: str, model: Camp, origin: Origin, manifest: Manifest, folder: Path) -> Manifest:
    """Write the graphs of a lower precision next to the float32 ones, and check them.

    In float16, encoders stay in float32 where float16 would cost too much accuracy on the examples, unless only float16
    encoders pass the gate.

    Args:
        precision: "float16", "bfloat16", "int8" or "float8".
        model: the network in float32.
        origin: its tokenizer and examples.
        manifest: the manifest of the bundle so far.
        folder: the bundle's folder.

    Returns:
        The manifest with the new graphs and their checks.

    Raises:
        ExportError: scores are too far from PyTorch's.
    """
    if precision in COARSE:
        return _add_coarse(precision, model, origin, manifest, folder)

    def check(graphs: Mapping[str, GraphSpec]) -> list[precision_gate.PrecisionCheck]:
        _with_graphs(manifest, precision, folder, LoweredGraphs(dict(graphs)))
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
        stderr.print(f"{', '.join(encoders)}: {'float32' if wide else f'{precision}, the only precision that passed'}")
        if wide:
            for name in encoders:
                (folder / graphs[name].file).unlink()
            graphs, checks = others, again
    failure = f"the {precision} graphs are too far from PyTorch's scores"
    require(checks, failure, WITHOUT)
    lowered = LoweredGraphs(graphs)
    manifest = _with_graphs(manifest, precision, folder, lowered, checks)
    if precision not in FIRST_PASSES:
        return manifest
    first = check_coarse(model, origin, Bundle(folder), precision)
    return _with_graphs(manifest, precision, folder, replace(lowered, logit_error=error_of(first)), checks)


def _add_coarse(precision: str, model: Camp, origin: Origin, manifest: Manifest, folder: Path) -> Manifest:
    """Write the scorer in int8 or float8, for the first pass of rankings; the encoders stay in float32."""
    spec = manifest.graphs["scorer"]
    file = f"{PRECISION_FOLDERS[precision]}/scorer.onnx"
    (folder / file).parent.mkdir()
    largest = largest_inputs(folder / spec.file, calibration_feeds(model, origin, Bundle(folder)))
    inputs, outputs = quantise_graph(folder / spec.file, folder / file, largest, precision)
    graphs = {"scorer": GraphSpec(file, tuple(inputs), tuple(outputs))}
    for rest in (True, False) if precision == INT8 and is_fast("bfloat16") else (False,):
        lowered = LoweredGraphs(graphs, rest_in_bfloat16=rest)
        _with_graphs(manifest, precision, folder, lowered)
        checks = check_coarse(model, origin, Bundle(folder), precision)
        stderr.print(checks_table(f"{precision} {coarse_gate.TITLE}", coarse_gate.COLUMNS, checks))
        if not any(found.faults() for found in checks):
            break
        if rest:
            stderr.print("the rest of the graph in bfloat16 costs too much accuracy: trying it in float32")
    require(checks, f"{precision} is too coarse for this network", WITHOUT)
    return _with_graphs(manifest, precision, folder, replace(lowered, logit_error=error_of(checks)), checks)


def _with_graphs(
    manifest: Manifest, precision: str, folder: Path, lowered: LoweredGraphs, checks: Collection[Any] = ()
) -> Manifest:
    """Write the manifest with the graphs of a lower precision and the figures of its gate, and return it."""
    error = None if lowered.logit_error is None else float(f"{lowered.logit_error:.3g}")
    lowered = replace(lowered, logit_error=error, checks=tuple(figures_of(check) for check in checks))
    changed = replace(manifest, precisions=manifest.precisions | {precision: lowered})
    write_manifest(folder, changed)
    return changed


def write_graphs(model: Camp, folder: Path) -> dict[str, GraphSpec]:
    """Write every graph of a network into a folder, and return their contract by the graphs' names."""
    contract = {}
    for graph in progress(graphs_of(model), "exporting graphs"):
        file = f"{graph.name}.onnx"
        inputs, outputs = export_graph(graph, folder / file)
        contract[graph.name] = GraphSpec(file, tuple(inputs), tuple(outputs))
    return contract


def write_lowered(precision: str, contract: Mapping[str, GraphSpec], folder: Path) -> dict[str, GraphSpec]:
    """Write the graphs of a folder in a lower precision as well; in bfloat16, only the scorer.

    Args:
        precision: "float16" or "bfloat16".
        contract: the float32 graphs.
        folder: the bundle's folder.

    Returns:
        The contract of the new graphs by their names. A vision graph that cannot be lowered is left out, and so is a
        graph that would compute mostly in float32 in float16 as well.
    """
    graphs = ("scorer",) if precision == "bfloat16" else (*ENCODERS, "scorer", "explainer")
    (folder / PRECISION_FOLDERS[precision]).mkdir()
    lowered: dict[str, GraphSpec] = {}
    halves: set[str] = set()
    for name in (graph for graph in graphs if graph in contract):  # encoders first: the scorer reads their outputs
        file = f"{PRECISION_FOLDERS[precision]}/{name}.onnx"
        try:
            inputs, outputs = lower_graph(folder / contract[name].file, folder / file, precision, halves)
        except ExportError as error:
            if name != "vision":  # a vision graph may come from the user
                raise
            stderr.print(f"the vision graph stays float32: {error}", highlight=False, soft_wrap=True)
            continue
        if precision == "float16" and precision_gate.is_mostly_float32(folder / file):
            stderr.print(f"the {name} graph stays float32: most of it does not fit float16", highlight=False)
            (folder / file).unlink()
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
    """A few real inputs with PyTorch's outputs, for a self-test that runs on the target without PyTorch.

    A caption and a picture file are added, with the inputs that they become.
    """
    case = next(case for case in parity.parity_cases(origin) if case.name == "ragged")
    expected = reference_outputs(model, case, torch.float64)
    inputs = {"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()}
    pixels = {"pixels": case.images[:GOLDEN_ITEMS].numpy()} if origin.pixels else {}
    given = caption_example(origin.open_tokenizer(), origin.example_captions)
    given |= picture_example(origin.pixels) if origin.pixels else {}
    found = inputs | pixels | {name: expected[name][:GOLDEN_ITEMS] for name in ("features", "logits")} | given
    # In C order, so that readers in other languages need not know numpy's other one.
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def _manifest(origin: Origin, graphs: dict[str, GraphSpec], scorer: Scorer) -> Manifest:
    return Manifest(
        variant=origin.model.variant,
        activation=scorer.activation,
        logit_unit=scorer.logit_unit,
        graphs=graphs,
        max_words=origin.open_tokenizer().max_words,
        stop_words=tuple(origin.stop_words),
        vocabulary=origin.model.vocabulary_size,
        pixels=origin.pixels,
        sizes=asdict(origin.model),
        made_with={name: version(name) for name in MADE_WITH},
        training=origin.training,
    )


def _first_stage(origin: Origin) -> FirstStage:
    dev = origin.training.get("dev")
    weight = dev.get(WEIGHT) if isinstance(dev, dict) else None
    try:
        return FirstStage.from_dict({"shortlist": SHORTLIST, "weight": weight})
    except ValueError as error:
        raise BundleError(f"the checkpoint's figures on dev: {WEIGHT}: {error}") from None
