"""What clients send and receive, and the steps that a call is made of; nothing here does the sending."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Generic, TypeVar

from camp_sdk.runtime.errors import CampError

JSON = "application/json"
MAX_ANSWER_BYTES = 16 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request.

    Args:
        method: Its method.
        path: Its path below the address of the server, with the query.
        content: Its body; None for none.
        content_type: The type of the body.
        may_miss: Whether the answer may be that there is no such item.
    """

    method: str
    path: str
    content: bytes | None = None
    content_type: str = JSON
    may_miss: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path.partition('?')[0][:200]}"


@dataclass(frozen=True)
class Reply:
    """An answer.

    Args:
        status: Its status.
        content_type: The type of its body, without parameters.
        retry_after: What it says of when to try again, or "".
        request_id: The ID of the request, or "".
        body: Its body.
    """

    status: int
    content_type: str
    retry_after: str
    request_id: str
    body: bytes


@dataclass(frozen=True)
class Failure:
    """No answer.

    Args:
        reason: Why, in words.
        arrived: Whether the request may have reached the server.
    """

    reason: str
    arrived: bool


@dataclass(frozen=True)
class Pause:
    """A wait before the next request.

    Args:
        seconds: How long.
    """

    seconds: float


@dataclass(frozen=True)
class Done(Generic[T]):
    """The end of a call.

    Args:
        result: Its result.
    """

    result: T


Step = Request | Pause
Outcome = Reply | Failure | None  # of a request, or of a pause
# A call: yields what is to be done, receives what came of it, and returns its result.
Steps = Generator[Step, Outcome, T]


def advance(steps: Steps[T], outcome: Outcome) -> Step | Done[T]:
    """The next step of a call, or its end.

    Args:
        steps: The call.
        outcome: What came of the step before; None at first.
    """
    try:
        return steps.send(outcome)
    except StopIteration as end:  # as a value, because no task or thread may raise this
        return Done(end.value)


class Body:
    """The body of an answer while it arrives: limited in bytes and in time, whatever the server sends.

    Args:
        request: The request.
        timeout_s: How long it may take.
    """

    def __init__(self, request: Request, timeout_s: float) -> None:
        self._request, self._ends = request, time.monotonic() + timeout_s
        self._parts: list[bytes] = []
        self._bytes = 0

    def add(self, part: bytes) -> None:
        """Keep another part.

        Raises:
            CampError: It is too much, or too late.
        """
        self._bytes += len(part)
        if self._bytes > MAX_ANSWER_BYTES:
            raise CampError(f"the answer to {self._request} has more than {MAX_ANSWER_BYTES >> 20} MiB: ask for less")
        if time.monotonic() > self._ends:
            raise CampError(f"the answer to {self._request} takes longer than `timeout_s`: raise it, or ask for less")
        self._parts.append(part)

    def whole(self) -> bytes:
        """All parts."""
        return b"".join(self._parts)
