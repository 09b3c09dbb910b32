"""A graph of an exported repository in Triton's Python backend, which runs the ONNX file with ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        names = [one.name for one in self._session.get_inputs()]
        feeds = [{name: pb_utils.get_input_tensor_by_name(one, name).as_numpy() for name in names} for one in requests]
        if not self._batched:
            return [self._response(self._run(one)) for one in feeds]
        sizes = np.cumsum([len(one[names[0]]) for one in feeds])[:-1]
        whole = self._run({name: np.concatenate([one[name] for one in feeds]) for name in names})
        parts = {name: np.split(array, sizes) for name, array in whole.items()}
        return [self._response({name: part[k] for name, part in parts.items()}) for k in range(len(requests))]

    def _run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        names = [one.name for one in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _response(self, outputs: dict[str, Any]) -> Any:
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
