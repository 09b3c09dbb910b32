"""Export a checkpoint as a bundle: ONNX graphs, tokenizer, manifest, golden examples; checked against PyTorch, or not made.

    python export/to_onnx.py --checkpoint runs/paper/best.ckpt --output bundle/ --precision fp16

An older bundle of that name is replaced when the new one is whole.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from camp_sdk.runtime.bundle import PRECISION_FOLDERS, SCHEMA_VERSION, Bundle, sha256_of
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import followed, holds_only, is_empty, write_aside
from camp_sdk.runtime.onnxruntime_engine import import_onnxruntime
from camp_sdk.runtime.openvino_engine import require_bfloat16
from camp_sdk.runtime.plans import engine_files
from camp_sdk.terminal import progress, run_command, stderr

MADE_WITH = ("camp-sdk", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


ENCODERS = ("vision", "image", "text")  # run once an image or a text, not for each pair


class Lower(Enum):
    """Precisions a bundle may hold beside float32, by their folders."""

    FP16 = PRECISION_FOLDERS["float16"]
    BF16 = PRECISION_FOLDERS["bfloat16"]


def export_bundle(checkpoint: Path, output: Path, precisions: Collection[str] = ()) -> Bundle:
    """Write the bundle of a checkpoint and return it, opened; the tables of the checks go to standard error.

    precisions: "float16" and "bfloat16", to be written beside float32. Raises InputError if ``output`` is taken by
    something else, BundleError for a broken checkpoint, ExportError if a graph is not what was meant or does not give
    PyTorch's scores. Whatever is raised, nothing is left at ``output`` that was not there before.
    """
    from camp_sdk.export.checkpoint import load_checkpoint  # here: --help need not wait for torch
    from camp_sdk.export.parity import check_parity, parity_table, require_parity

    check_output(output)
    import_onnxruntime("cpu")  # the gates need it: not to be missed after a minute of exporting
    if "bfloat16" in precisions:
        require_bfloat16()
    model, origin = load_checkpoint(checkpoint)
    with write_aside(followed(output)) as aside:
        aside.mkdir()
        contract = write_graphs(model, aside)
        (aside / "tokenizer.json").write_text(origin.tokenizer, encoding="utf-8")
        np.savez(aside / "golden.npz", **golden_arrays(model, origin))
        manifest = _manifest(origin, contract, model.scorer.activation)
        _write_manifest(aside, manifest)
        checks = check_parity(model, origin, Bundle(aside))
        stderr.print(parity_table(checks))
        require_parity(checks)
        manifest["parity"] = [asdict(check) for check in checks]
        _write_manifest(aside, manifest)
        for precision in precisions:
            add_precision(precision, model, origin, manifest, aside)
    return Bundle(output)


def add_precision(precision: str, model: Any, origin: Any, manifest: dict[str, Any], folder: Path) -> None:
    """Write the graphs of a lower precision beside those of a manifest, check them, and write both into the manifest.

    In float16 the encoders are left in float32, and told of, where examples lose too much with them in half, unless they lose
    even more then. Raises ExportError if scores are too far from PyTorch's.
    """
    from camp_sdk.export.precision_gate import check_precision, precision_table, require_precision

    def check(graphs: dict[str, Any]) -> list[Any]:
        manifest["precisions"][precision] = {"graphs": graphs}
        _write_manifest(folder, manifest)
        found = check_precision(model, origin, Bundle(folder), precision)
        stderr.print(precision_table(found, precision))
        return found

    graphs = write_lowered(precision, manifest["graphs"], folder)
    checks = check(graphs)
    encoders = [name for name in ENCODERS if name in graphs]
    if encoders and not all(found.with_margin for found in checks):
        stderr.print(f"encoders in {precision} cost this network much: once more with {', '.join(encoders)} in float32")
        others = {name: graph for name, graph in graphs.items() if name not in encoders}
        again = check(others)
        wide = all(found.passed for found in again) or not all(found.passed for found in checks)
        stderr.print(f"{', '.join(encoders)}: {'float32' if wide else f'{precision}, which alone passed'}")
        if wide:
            for name in encoders:
                (folder / graphs[name]["file"]).unlink()
            graphs, checks = others, again
    require_precision(checks, precision)
    manifest["precisions"][precision] = {"graphs": graphs, "checks": [asdict(found) for found in checks]}
    _write_manifest(folder, manifest)


def write_graphs(model: Any, folder: Path) -> dict[str, Any]:
    """Write every graph of a network into a folder; returns their contract, as the manifest holds it."""
    from camp_sdk.export.graphs import export_graph, graphs_of

    contract = {}
    for graph in progress(graphs_of(model), "exporting graphs"):
        inputs, outputs = export_graph(graph, folder / f"{graph.name}.onnx")
        contract[graph.name] = _entry(f"{graph.name}.onnx", inputs, outputs)
    return contract


def write_lowered(precision: str, contract: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the graphs of a folder in a lower precision, too; returns their contract. bfloat16 is for the scorer alone."""
    from camp_sdk.export.graphs import ExportError
    from camp_sdk.export.precision import lower_graph

    graphs = ("scorer",) if precision == "bfloat16" else (*ENCODERS, "scorer", "explainer")
    (folder / PRECISION_FOLDERS[precision]).mkdir()
    lowered: dict[str, Any] = {}
    halves: set[str] = set()
    for name in (graph for graph in graphs if graph in contract):  # encoders first: the scorer reads what they make
        file = f"{PRECISION_FOLDERS[precision]}/{name}.onnx"
        try:
            inputs, outputs = lower_graph(folder / contract[name]["file"], folder / file, precision, halves)
        except ExportError as error:
            if name != "vision":  # that one may be anybody's
                raise
            stderr.print(f"the vision graph stays float32: {error}", highlight=False, soft_wrap=True)
            continue
        halves |= {spec.name for spec in outputs if spec.dtype == "float16"}
        lowered[name] = _entry(file, inputs, outputs)
    return lowered


def check_output(output: Path) -> None:
    """Raise InputError if a bundle written to ``output`` would replace anything but an older bundle and its engines."""
    if not output.exists() or is_empty(output):
        return
    try:
        listed = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["files"]
        mine = holds_only(output, ["manifest.json", *listed, *engine_files(output)])
    except (OSError, ValueError, KeyError, TypeError):
        mine = False
    if not mine:
        raise InputError(f"{output} exists and is not a bundle, or holds other files too: name another folder")


def golden_arrays(model: Any, origin: Any) -> dict[str, Any]:
    """A few real inputs and PyTorch's outputs: the self-test a target can run without PyTorch."""
    from camp_sdk.export.parity import parity_cases, reference_outputs

    case = next(case for case in parity_cases(origin) if case.name == "ragged")
    expected = reference_outputs(model, case)
    inputs = {"tokens": case.tokens.numpy(), "lengths": case.lengths.numpy()}
    pixels = {"pixels": case.images[:8].numpy()} if origin.pixels else {}
    return inputs | pixels | {"features": expected["features"][:8], "logits": expected["logits"][:8]}


def _entry(file: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    return {"file": file, "inputs": _specs(inputs), "outputs": _specs(outputs)}


def _specs(specs: Any) -> dict[str, Any]:
    return {spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs}


def _manifest(origin: Any, contract: dict[str, Any], activation: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "variant": origin.model.variant,
        "activation": activation,
        "sizes": asdict(origin.model),
        "graphs": contract,
        "pixels": asdict(origin.pixels) if origin.pixels else None,
        "precisions": {},
        "tokenizer": {"file": "tokenizer.json", "max_words": origin.open_tokenizer().max_words},
        "made_with": {name: version(name) for name in MADE_WITH},
        "training": origin.training,
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in found if name != "manifest.json"]
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    text = json.dumps(manifest | {"files": files}, indent=2, sort_keys=True)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def main(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint written by export/train.py.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
    precision: Annotated[
        list[Lower] | None,
        typer.Option(
            help="Also write graphs for GPUs (fp16), or for processors that compute in bfloat16 (bf16; needs openvino)."
        ),
    ] = None,
) -> None:
    """Export a checkpoint as a bundle, and check its scores against PyTorch."""
    names = {folder: name for name, folder in PRECISION_FOLDERS.items()}
    export_bundle(checkpoint, output, [names[wanted.value] for wanted in dict.fromkeys(precision or ())])
    stderr.print(f"wrote {output}", highlight=False)


if __name__ == "__main__":
    run_command(main)
