"""A connection to Triton Inference Server: named arrays in, named arrays out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from camp_sdk.runtime.engines.base import Arrays, Engine, Interface
from camp_sdk.runtime.errors import BackendError, InputError, MissingExtraError
from camp_sdk.runtime.messages import brief, visible

PROTOCOLS = ("grpc", "http")
NUMPY = {"FP32": "float32", "FP16": "float16", "INT64": "int64", "INT8": "int8", "BOOL": "bool"}


def import_tritonclient(protocol: str) -> ModuleType:
    """The module of tritonclient for a protocol.

    Args:
        protocol: "grpc" or "http".

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except (ImportError, RuntimeError):  # it raises the latter where a package that it needs is not installed
        raise MissingExtraError("tritonclient", "triton") from None


@dataclass(frozen=True)
class _Declared:
    """What the server says of a model."""

    inputs: dict[str, str]
    outputs: tuple[str, ...]
    max_batch: int


class TritonServer:
    """A connection; models are asked for what they take when they are first used.

    Args:
        url: The host and port.
        protocol: "grpc" or "http".
        timeout_s: How long a request may take.

    Raises:
        InputError: An argument has the wrong type or is out of range.
        MissingExtraError: tritonclient is not installed.
    """

    def __init__(self, url: Any, protocol: Any, timeout_s: Any) -> None:
        if protocol not in PROTOCOLS:
            raise InputError(f"`protocol` is {brief(protocol)}: expected grpc or http")
        if not isinstance(url, str) or not url or "://" in url:
            raise InputError(f"`url` is {brief(url)}: expected a host and a port, such as 127.0.0.1:8001")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not 0 < timeout_s < float("inf"):
            raise InputError(f"`timeout_s` is {brief(timeout_s)}: expected a number of seconds, more than 0")
        self._module, self._grpc, self._timeout_s = import_tritonclient(protocol), protocol == "grpc", timeout_s
        limits = {} if self._grpc else {"network_timeout": timeout_s, "connection_timeout": timeout_s}
        self._client = self._module.InferenceServerClient(url, **limits)
        self._models: dict[str, _Declared] = {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def declared(self, model: str) -> _Declared:
        """What a model takes and makes.

        Args:
            model: Its name.

        Raises:
            BackendError: The server does not answer, or has no such model.
        """
        if model not in self._models:
            options = {"as_json": True, "client_timeout": self._timeout_s} if self._grpc else {}
            found = self._call(model, self._client.get_model_config, model, **options)
            values = found["config"] if self._grpc else found
            inputs = {one["name"]: NUMPY[one["data_type"].removeprefix("TYPE_")] for one in values["input"]}
            outputs = tuple(one["name"] for one in values["output"])
            self._models[model] = _Declared(inputs, outputs, int(values.get("max_batch_size", 0)))
        return self._models[model]

    def infer(self, model: str, feeds: Mapping[str, Any]) -> Arrays:
        """Run a model once.

        Args:
            model: Its name.
            feeds: Every input by name; they are converted to the types that the model takes.

        Raises:
            BackendError: The server does not answer, or refuses the request.
        """
        declared = self.declared(model)
        inputs = [self._input(name, feeds[name], dtype) for name, dtype in declared.inputs.items()]
        outputs = [self._module.InferRequestedOutput(name) for name in declared.outputs]
        options = {"client_timeout": self._timeout_s} if self._grpc else {}
        result = self._call(model, self._client.infer, model, inputs, outputs=outputs, **options)
        return {name: result.as_numpy(name) for name in declared.outputs}

    def _input(self, name: str, values: Any, dtype: str) -> Any:
        array = np.ascontiguousarray(values, dtype)
        kind = next(kind for kind, own in NUMPY.items() if own == dtype)
        given = self._module.InferInput(name, list(array.shape), kind)
        given.set_data_from_numpy(array)
        return given

    def _call(self, model: str, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except Exception as error:  # over HTTP it raises those of gevent and of sockets besides its own
            reason = visible(str(error)[:300]) or type(error).__name__
            raise BackendError(f"the Triton server did not run {model!r}: {reason}") from None


class TritonModel(Engine):
    """An encoder on the server.

    Args:
        server: The connection.
        model: The encoder's name.
        longest: The number of tokens to which texts are padded; None for images.
    """

    def __init__(self, server: TritonServer, model: str, longest: int | None) -> None:
        self._server, self._model, self._longest = server, model, longest

    def _run(self, feeds: Mapping[str, Any]) -> Arrays:
        whole = {name: self._shaped(name, array) for name, array in feeds.items()}
        most = max(1, self._server.declared(self._model).max_batch)
        count = len(next(iter(whole.values())))
        parts = [
            self._server.infer(self._model, {name: array[at : at + most] for name, array in whole.items()})
            for at in range(0, count, most)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _shaped(self, name: str, array: Any) -> Any:
        """An input as the server takes it: requests are encoded together only if their shapes are equal."""
        if name == "lengths":
            return array[:, None]
        if name == "tokens" and self._longest is not None:
            return np.pad(array, ((0, 0), (0, self._longest - array.shape[1])))
        return array

    def close(self) -> None:
        """Nothing is held: the connection belongs to the server."""

    def interface(self) -> tuple[Interface, Interface]:
        """The configuration on the server is the interface; nothing asks for it here."""
        raise NotImplementedError
