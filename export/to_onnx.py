"""Export a checkpoint as a bundle: ONNX graphs, tokenizer, manifest, golden examples; checked against PyTorch, or not made.

    python export/to_onnx.py --checkpoint runs/paper/best.ckpt --output bundle/

An older bundle of that name is replaced when the new one is whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from camp_sdk.runtime.bundle import GLOBAL_SUFFIX, SCHEMA_VERSION, Bundle, sha256_of
from camp_sdk.runtime.errors import InputError
from camp_sdk.runtime.files import holds_only, write_aside
from camp_sdk.runtime.onnxruntime_engine import import_onnxruntime
from camp_sdk.terminal import progress, run_command, stderr

MADE_WITH = ("camp-sdk", "torch", "onnx", "onnxscript", "onnxruntime", "tokenizers", "numpy")


def export_bundle(checkpoint: Path, output: Path) -> Bundle:
    """Write the bundle of a checkpoint and return it, opened; the parity table goes to standard error.

    Raises InputError if ``output`` is taken by something else, BundleError for a broken checkpoint, ExportError if a
    graph is not what was meant or does not give PyTorch's scores. Whatever is raised, nothing is left at ``output``
    that was not there before.
    """
    from camp_sdk.export.checkpoint import load_checkpoint  # here: --help need not wait for torch
    from camp_sdk.export.parity import check_parity, parity_table, require_parity

    check_output(output)
    import_onnxruntime("cpu")  # the parity gate needs it: not to be missed after a minute of exporting
    model, origin = load_checkpoint(checkpoint)
    with write_aside(output) as aside:
        aside.mkdir()
        contract = write_graphs(model, aside)
        (aside / "tokenizer.json").write_text(origin.tokenizer, encoding="utf-8")
        np.savez(aside / "golden.npz", **golden_arrays(model, origin))
        manifest = _manifest(origin, contract, model.scorer.activation)
        _write_manifest(aside, manifest)
        checks = check_parity(model, origin, Bundle(aside))
        stderr.print(parity_table(checks))
        require_parity(checks)
        _write_manifest(aside, manifest | {"parity": [asdict(check) for check in checks]})
    return Bundle(output)


def write_graphs(model: Any, folder: Path) -> dict[str, Any]:
    """Write every graph of a network into a folder; returns their contract, as the manifest holds it."""
    from camp_sdk.export.graphs import export_graph, graphs_of, write_widening

    contract = {}
    for graph in progress(graphs_of(model), "exporting graphs"):
        inputs, outputs = export_graph(graph, folder / f"{graph.name}.onnx")
        contract[graph.name] = _entry(graph.name, inputs, outputs)
        if graph.name == "image":
            kept = [spec for spec in outputs if not spec.name.endswith(GLOBAL_SUFFIX)]
    for precision in ("float16", "int8"):
        name = f"widen-{precision}"
        contract[name] = _entry(name, *write_widening(precision, kept, folder / f"{name}.onnx"))
    return contract


def check_output(output: Path) -> None:
    """Raise InputError if a bundle written to ``output`` would replace anything but an older bundle."""
    if not output.exists():
        return
    try:
        listed = json.loads((output / "manifest.json").read_text(encoding="utf-8"))["files"]
        mine = holds_only(output, ["manifest.json", *listed])
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


def _entry(name: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    return {"file": f"{name}.onnx", "inputs": _specs(inputs), "outputs": _specs(outputs)}


def _specs(specs: Any) -> dict[str, Any]:
    return {spec.name: {"dtype": spec.dtype, "shape": list(spec.shape)} for spec in specs}


def _manifest(origin: Any, contract: dict[str, Any], activation: str) -> dict[str, Any]:
    from camp_sdk.export.vocabulary import MAX_WORDS

    return {
        "schema_version": SCHEMA_VERSION,
        "variant": origin.model.variant,
        "activation": activation,
        "sizes": asdict(origin.model),
        "graphs": contract,
        "pixels": asdict(origin.pixels) if origin.pixels else None,
        "precisions": {},
        "tokenizer": {"file": "tokenizer.json", "max_words": MAX_WORDS},
        "made_with": {name: version(name) for name in MADE_WITH},
        "training": origin.training,
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    names = sorted(path.name for path in folder.iterdir() if path.name != "manifest.json")
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in names}
    text = json.dumps(manifest | {"files": files}, indent=2, sort_keys=True)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def main(
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint written by export/train.py.")],
    output: Annotated[Path, typer.Option(help="Bundle folder to write; an older bundle there is replaced.")],
) -> None:
    """Export a checkpoint as a bundle, and check its scores against PyTorch."""
    export_bundle(checkpoint, output)
    stderr.print(f"wrote {output}", highlight=False)


if __name__ == "__main__":
    run_command(main)
