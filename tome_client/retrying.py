"""Retry policy, as steps that a client performs. This module neither does I/O nor sleeps."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from tome_client.errors import TomeError, Unreachable, problem_from_response

RETRYABLE_STATUSES = (429, 503)


@dataclass(frozen=True)
class Request:
    """One HTTP request, with the arguments of httpx.

    Attributes:
        timeout: timeout in seconds of each phase of the request.
    """

    method: str
    path: str
    timeout: float
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """A wait before the next request."""

    seconds: float


# A generator that yields the next step of a client. The client sends back the response or the
# transport error of a request, and None after a pause. The generator returns the result.
Steps = Generator[Request | Pause, Any, "Any"]


@dataclass(frozen=True)
class Retry:
    """Retry policy: exponential back-off with jitter. Requests are idempotent, so a retry is safe.

    Attributes:
        attempts: maximum number of requests; 1 disables retries.
        total: time limit in seconds of all attempts; no retry is scheduled after it.
        first: maximum back-off in seconds before the second attempt; it doubles with each attempt.
        longest: upper limit in seconds of the back-off.

    The back-off is added to the server's ``Retry-After``. No client retries earlier, and the jitter
    spreads the clients' retries.
    """

    attempts: int = 6
    total: float = 60.0
    first: float = 0.1
    longest: float = 10.0

    def pause(self, attempt: int, retry_after: float | None, draw: float) -> float:
        """Return the seconds to wait after an attempt.

        Args:
            attempt: number of the attempt, from 1.
            retry_after: seconds in the server's ``Retry-After``, if it sent one.
            draw: random number in [0, 1) for the jitter.
        """
        back_off = min(self.longest, self.first * 2 ** (attempt - 1))
        return (retry_after or 0.0) + draw * back_off


class RetryLoop:
    """One sequence of attempts, with a limit on their number and total time.

    Args:
        retry: retry policy.
        clock: returns the time in seconds.
        draw: returns a random number in [0, 1) for the jitter.
    """

    def __init__(
        self,
        retry: Retry,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._retry = retry
        self._clock = clock
        self._draw = draw
        self._deadline = clock() + retry.total
        self._attempts = itertools.count(1)

    def request(self, request: Request) -> Steps:
        """Steps that return a successful response.

        Raises:
            ProblemError: the last attempt received an error response.
            Unreachable: the last attempt received no response.
        """
        while True:
            remaining = max(0.001, self._deadline - self._clock())
            outcome = yield replace(request, timeout=min(request.timeout, remaining))
            if isinstance(outcome, httpx.Response) and outcome.is_success:
                return outcome
            if isinstance(outcome, httpx.Response):
                error: TomeError = problem_from_response(outcome)
                if outcome.status_code not in RETRYABLE_STATUSES:
                    raise error
                yield from self.back_off(error, getattr(error, "retry_after", None))
            else:
                reason = outcome or type(outcome).__name__
                error = Unreachable(f"no response from the server: {reason}")
                error.__cause__ = outcome
                yield from self.back_off(error, None)

    def back_off(self, error: TomeError, retry_after: float | None) -> Steps:
        """Pause before the next attempt. Raise ``error`` if no attempt or time is left."""
        attempt = next(self._attempts)
        seconds = self._retry.pause(attempt, retry_after, self._draw())
        if attempt >= self._retry.attempts or self._clock() + seconds >= self._deadline:
            raise error
        yield Pause(seconds)
