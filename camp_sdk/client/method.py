"""A method that is written once, as steps, and is a call of `Client` and a coroutine of `AsyncClient`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from camp_sdk.client.wire import Steps

P = ParamSpec("P")
T = TypeVar("T")


class Blocking(ABC):
    """What takes the steps of a call one after another."""

    @abstractmethod
    def run(self, steps: Steps[T]) -> T:
        """The result of a call."""


class Awaiting(ABC):
    """What takes the steps of a call in an event loop."""

    @abstractmethod
    async def run(self, steps: Steps[T]) -> T:
        """The result of a call."""


class method(Generic[P, T]):  # a decorator, as `property` is
    """Makes a method of a function whose steps are those of a call.

    Args:
        build: The function; it has the signature and the docstring of the method.
    """

    def __init__(self, build: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Steps[T]]: ...

    @overload
    def __get__(self, client: Blocking, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: Any, owner: type) -> Any:
        if client is None:
            return self._build
        build = self._build

        @wraps(build)
        def call(*arguments: P.args, **options: P.kwargs) -> Any:
            return client.run(build(client, *arguments, **options))

        return call
