"""Triton's model `rank`: ranks encoded images for one text, by calls of `scorer`.

`camp export-triton` copies this file into the repository. It runs in Triton's Python backend and needs NumPy alone.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the settings.

        Args:
            args: What Triton says of the model; `model_config` is JSON.
        """
        values = json.loads(args["model_config"])["parameters"]
        self._activation = values["activation"]["string_value"]
        self._block = int(values["block"]["string_value"])
        self._images = json.loads(values["images"]["string_value"])
        self._texts = json.loads(values["texts"]["string_value"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each by itself.

        Args:
            requests: The requests.
        """
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            outputs = self._ranked(request)
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])

    def _ranked(self, request: Any) -> dict[str, Any]:
        images, texts = (_read(request, types) for types in (self._images, self._texts))
        top_k = int(pb_utils.get_input_tensor_by_name(request, "top_k").as_numpy().reshape(-1)[0])
        counts = {len(array) for array in images.values()}
        if len(counts) != 1 or top_k < 1:
            raise ValueError(
                f"{sorted(counts)} images in the tensors, top_k {top_k}: expected one number, and 1 or more"
            )
        starts = range(0, counts.pop(), self._block)
        logits = np.concatenate(
            [_scored({name: array[at : at + self._block] for name, array in images.items()} | texts) for at in starts]
        )
        if not np.isfinite(logits).all():
            raise ValueError("a logit is not a finite number: an encoded image or the text is not valid")
        order = np.argsort(-logits, kind="stable")[:top_k]  # equal logits keep the order of the images
        best = logits[order]
        return {"indices": order.astype(np.int64), "logits": best, "scores": self._activated(best)}

    def _activated(self, logits: Any) -> Any:
        if self._activation == "none":
            return logits
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and the score 0
            return (1 / (1 + np.exp(-logits))).astype(np.float32)


def _read(request: Any, types: dict[str, str]) -> dict[str, Any]:
    """Inputs of a request, in the types that the scorer takes."""
    read = {name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in types}
    return {name: read[name].astype(dtype, copy=False) for name, dtype in types.items()}


def _scored(tensors: dict[str, Any]) -> Any:
    """Logits of a block of images against the text, float32 [I]."""
    inputs = [pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in tensors.items()]
    request = pb_utils.InferenceRequest(
        model_name="scorer",
        requested_output_names=["logits"],
        inputs=inputs,
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise ValueError(f"the scorer failed: {response.error().message()}")
    return pb_utils.get_output_tensor_by_name(response, "logits").as_numpy()[:, 0].astype(np.float32)
