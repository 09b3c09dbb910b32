"""One request with its retries, and the errors that answers stand for."""

from __future__ import annotations

import http
import itertools
import json
import random

from camp_sdk.client.wire import Failure, Outcome, Pause, Reply, Request, Steps
from camp_sdk.runtime.errors import BackendError, BundleError, BusyError, CampError, InputError
from camp_sdk.runtime.messages import brief, visible

PROBLEM = "application/problem+json"
BUSY = (429, 503)
FIRST_PAUSE_S = 0.5  # and twice as long each time, where the server does not say how long
MAX_PAUSE_S = 60.0
SPREAD = 0.25  # of a pause, so that clients that were refused together do not return together
MAX_DETAIL = 1000  # characters
ERRORS: dict[int, type[CampError]] = {
    **dict.fromkeys((400, 401, 403, 404, 413, 415, 422), InputError),
    409: BundleError,
    501: BackendError,
    **dict.fromkeys(BUSY, BusyError),
}


def ask(request: Request, retries: int) -> Steps[Reply]:
    """Send a request, and again while the server is busy or cannot be reached.

    Args:
        request: The request.
        retries: How often it is sent again at most.

    Returns:
        An answer without an error; of a request that may miss, also one with status 404.

    Raises:
        CampError: The answer is an error, or there is none.
    """
    for number in itertools.count():
        outcome = yield request
        seconds = _pause(outcome, number)
        if seconds is None or number >= retries:
            break
        yield Pause(seconds)
    return _checked(request, outcome)


def _pause(outcome: Outcome, number: int) -> float | None:
    """How long to wait before the request is sent again; None if it is not."""
    own = FIRST_PAUSE_S * (1 << min(number, 10))
    if isinstance(outcome, Reply) and outcome.status in BUSY:
        asked = outcome.retry_after.strip()
        own = float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else own
    elif not isinstance(outcome, Failure) or outcome.arrived:
        return None
    if own > MAX_PAUSE_S:
        return None
    return own * (1 + SPREAD * random.random())  # noqa: S311 # nothing secret


def _checked(request: Request, outcome: Outcome) -> Reply:
    if not isinstance(outcome, Reply):
        reason = outcome.reason if isinstance(outcome, Failure) else "nothing was sent"
        raise CampError(f"{request} has no answer: {reason}")
    is_problem = outcome.content_type == PROBLEM
    if 200 <= outcome.status < 300 or (outcome.status == 404 and request.may_miss and is_problem):
        return outcome
    raise _error_of(request, outcome)


def _error_of(request: Request, reply: Reply) -> CampError:
    detail = _detail(reply)
    if detail is None and reply.status not in BUSY:
        return CampError(
            f"{request} was answered with {_status(reply)}, as camp serve does not answer: expected its address"
        )
    kind = ERRORS.get(reply.status, CampError)
    message = detail or "the server is busy"
    if kind is InputError:
        return kind(message)
    request_id = f", request {visible(reply.request_id)[:64]}" if reply.request_id else ""
    return kind(f"{message} ({_status(reply)}{request_id})")


def _status(reply: Reply) -> str:
    try:
        return f"status {reply.status} {http.HTTPStatus(reply.status).phrase}"
    except ValueError:
        return f"status {brief(reply.status)}"


def _detail(reply: Reply) -> str | None:
    """What an error says is wrong; None if it is not one of camp serve."""
    if reply.content_type != PROBLEM:
        return None
    try:
        detail = json.loads(reply.body)["detail"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return visible(detail[:MAX_DETAIL]) if isinstance(detail, str) and detail else None
