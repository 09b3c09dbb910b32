"""Shards as deployments of Ray Serve: what runs in each of them, and how they are called."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_sdk.cluster.building import import_ray
from camp_sdk.cluster.shard import Shard
from camp_sdk.retriever import Retriever
from camp_sdk.runtime.errors import CampError

METHODS = frozenset({"nearest", "score", "rank", "similar", "size", "item", "tensors", "precision"})
WAITING, WAITING_S = "waiting_s", 0.5  # a figure of processes in front, and how much of it each should have
RETRY_S = 0.2  # after a shard was lost, whose replica is begun again


@dataclass(frozen=True)
class ShardOptions:
    """What a shard opens.

    Args:
        bundle: The folder of the bundle.
        paths: The indexes of its parts.
        backend: As `Retriever` takes it.
        precision: As `Retriever` takes it.
        threads: As `Retriever` takes it.
        memory_budget: As `Retriever` takes it.
    """

    bundle: Path
    paths: tuple[Path, ...]
    backend: str
    precision: str
    threads: int | None
    memory_budget: int | None


class ShardReplica:
    """One replica of a shard.

    Args:
        options: What it opens.
    """

    def __init__(self, options: ShardOptions) -> None:
        self._retriever = Retriever(
            options.bundle, options.backend, options.precision, options.threads, options.memory_budget
        )
        self._shard = Shard(self._retriever, options.paths)

    async def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of the shard, in a thread.

        Args:
            method: The name of the method.
            arguments: Its arguments.
        """
        if method not in METHODS:
            raise ValueError(method)
        return await asyncio.to_thread(getattr(self._shard, method), *arguments)


class RayShards:
    """The shards of an application of Ray Serve.

    Args:
        app: The name of the application.
        count: The number of its shards.
        limit_s: How long each may take, in seconds.
    """

    def __init__(self, app: str, count: int, limit_s: float) -> None:
        self._ray = import_ray()
        from ray import serve

        self._limit_s = limit_s
        self._handles = [serve.get_deployment_handle(name_of(shard), app) for shard in range(count)]

    @property
    def numbers(self) -> range:
        """The numbers of all shards."""
        return range(len(self._handles))

    def close(self) -> None:
        """Nothing: the deployments go on."""

    def call(self, method: str, arguments: Mapping[int, Sequence[Any]]) -> dict[int, Any]:
        """Call a method of several shards at the same time; see `Shards.call`."""
        ends = time.monotonic() + self._limit_s
        begun = {n: self._handles[n].call.remote(method, given) for n, given in arguments.items()}
        found = {}
        for number, response in begun.items():
            try:
                found[number] = self._result(number, response, (method, arguments[number]), ends)
            except (TimeoutError, self._ray.exceptions.RayError):
                continue  # it is missing
        return found

    def _result(self, number: int, response: Any, asked: tuple[str, Sequence[Any]], ends: float) -> Any:
        """The result of a shard, which is asked again if its replica is lost."""
        while True:
            try:
                return response.result(timeout_s=max(0.0, ends - time.monotonic()))
            except TimeoutError:
                response.cancel()
                raise
            except self._ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, CampError):
                    raise error.cause from None
                raise
            except self._ray.exceptions.RayError:
                if time.monotonic() + RETRY_S >= ends:
                    raise
                time.sleep(RETRY_S)
                response = self._handles[number].call.remote(*asked)


def by_waiting(context: Any) -> tuple[int, dict[str, Any]]:
    """How many processes in front there should be, for queries not to wait for long.

    Args:
        context: What Ray Serve says of the deployment.

    Returns:
        The number, and what the next call is given, which is nothing.
    """
    held = (context.aggregated_metrics or {}).get(WAITING, {})
    return max(1, math.ceil(sum(held.values()) / WAITING_S)), {}


def name_of(shard: int) -> str:
    """The name of the deployment of a shard."""
    return f"shard-{shard}"
