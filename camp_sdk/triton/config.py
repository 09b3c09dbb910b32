"""config.pbtxt of a model in Triton's repository, as text: protocol buffers are not needed to write it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from camp_sdk.runtime.contract import TensorSpec

TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int8": "INT8", "bool": "BOOL"}
KINDS = {"gpu": "KIND_GPU", "cpu": "KIND_CPU"}
QUEUE_DELAY_US = 1000  # that a request waits for others; an encoder takes longer than that


@dataclass(frozen=True)
class WarmInput:
    """The value of an input at warm-up.

    Args:
        spec: The input.
        dims: Its sizes, without the axis of the batch if the model has one.
        file: The name of the file in the model's folder `warmup`; None for zeros.
    """

    spec: TensorSpec
    dims: tuple[int, ...]
    file: str | None


def quoted(text: str) -> str:
    """A string of the text format; names of tensors are printable, so that only quotes and backslashes are escaped."""
    return json.dumps(text, ensure_ascii=False)


def tensors_text(side: str, specs: Iterable[TensorSpec], batched: bool, sizes: Mapping[str, int]) -> str:
    """The inputs or the outputs of a model.

    Args:
        side: "input" or "output".
        specs: The tensors.
        batched: Whether Triton adds the first axis itself, which is then left out.
        sizes: The axes with a letter whose size is fixed; others get -1.
    """
    return "".join(_tensor(side, spec, batched, sizes) for spec in specs)


def _tensor(side: str, spec: TensorSpec, batched: bool, sizes: Mapping[str, int]) -> str:
    shape = spec.shape[1:] if batched else spec.shape
    dims = [axis if isinstance(axis, int) else sizes.get(axis, -1) for axis in shape]
    # Triton refuses a tensor without axes: a number for each item of a batch is declared as a vector of one.
    shown, reshape = (dims, "") if dims else ([1], "  reshape { shape: [] }\n")
    head = f"{side} {{\n  name: {quoted(spec.name)}\n  data_type: TYPE_{TYPES[spec.dtype]}\n"
    return f"{head}  dims: {shown}\n{reshape}}}\n"


def head_text(name: str, backend: str, max_batch: int) -> str:
    """The first lines: the name, the backend and the largest batch (0 for a model without the axis of a batch)."""
    return f"name: {quoted(name)}\nbackend: {quoted(backend)}\nmax_batch_size: {max_batch}\n"


def group_text(device: str) -> str:
    """Where instances run.

    Args:
        device: "gpu" or "cpu".
    """
    return f"instance_group {{ count: 1 kind: {KINDS[device]} }}\n"


def batching_text() -> str:
    """Requests that wait are encoded together."""
    return f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_DELAY_US} }}\n"


def warmup_text(inputs: Sequence[WarmInput]) -> str:
    """One request that Triton makes before a model is ready.

    Args:
        inputs: All inputs of the model.
    """
    return 'model_warmup {\n  name: "golden"\n  batch_size: 1\n' + "".join(map(_warm_input, inputs)) + "}\n"


def _warm_input(given: WarmInput) -> str:
    source = "zero_data: true" if given.file is None else f"input_data_file: {quoted(given.file)}"
    value = f"data_type: TYPE_{TYPES[given.spec.dtype]} dims: {list(given.dims)} {source}"
    return f"  inputs {{ key: {quoted(given.spec.name)} value {{ {value} }} }}\n"


def parameters_text(values: Mapping[str, str]) -> str:
    """Settings that a Python model reads."""
    return "".join(
        f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}\n"
        for key, value in values.items()
    )


def ensemble_text(name: str, max_batch: int, steps: Sequence[tuple[str, Sequence[str], Sequence[str]]]) -> str:
    """The head and the steps of an ensemble, whose tensors are named as its models name them.

    Args:
        name: The ensemble's name.
        max_batch: The largest batch.
        steps: For each model its name, its inputs and its outputs.
    """
    text = f'name: {quoted(name)}\nplatform: "ensemble"\nmax_batch_size: {max_batch}\nensemble_scheduling {{\n'
    for model, reads, makes in steps:
        text += f"  step {{\n    model_name: {quoted(model)}\n    model_version: -1\n"
        for side, names in (("input_map", reads), ("output_map", makes)):
            text += "".join(f"    {side} {{ key: {quoted(one)} value: {quoted(one)} }}\n" for one in names)
        text += "  }\n"
    return text + "}\n"
