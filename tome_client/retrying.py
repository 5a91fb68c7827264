"""When to ask again, as steps that are carried out by a client: no clock, no network and no sleep in here."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from tome_client.errors import TomeError, Unreachable, problem_of

RETRIED = (429, 503)


@dataclass(frozen=True)
class Request:
    """One HTTP request; the members are httpx's. ``timeout``: seconds that each part of it may take."""

    method: str
    path: str
    timeout: float
    params: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


# What a client is told to do next; what it says of a request (of a pause: None); and what comes of
# it all.
Steps = Generator[Request | Pause, Any, "Any"]


@dataclass(frozen=True)
class Retry:
    """How persistently to ask. Asking again is safe: a request changes nothing on the server.

    Attributes:
        attempts: most requests for one answer; 1 for no retries.
        total: seconds after which no further one is begun or waited for.
        first: most seconds before the second attempt; doubled for each further one.
        longest: most seconds of such a wait.

    A ``Retry-After`` of the server comes on top: nobody asks before that, and not all at once after
    it.
    """

    attempts: int = 6
    total: float = 60.0
    first: float = 0.1
    longest: float = 10.0

    def pause(self, attempt: int, retry_after: float | None, draw: float) -> float:
        """Seconds between ``attempt``, from 1, and the next; ``draw`` is random, from 0 to 1 (full jitter)."""
        return (retry_after or 0.0) + draw * min(self.longest, self.first * 2 ** (attempt - 1))


class Persistence:
    """One answer's attempts.

    Args:
        clock: seconds.
        draw: random numbers from 0 to 1.
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
        self._end = clock() + retry.total
        self._attempts = itertools.count(1)

    def request(self, request: Request) -> Steps:
        """Steps to a response that is a success.

        Raises:
            ProblemError: the server's last answer was none.
            Unreachable: there was no answer at last.
        """
        while True:
            remaining = max(0.001, self._end - self._clock())
            reply = yield replace(request, timeout=min(request.timeout, remaining))
            if isinstance(reply, httpx.Response) and reply.is_success:
                return reply
            if isinstance(reply, httpx.Response):
                error: TomeError = problem_of(reply)
                if reply.status_code not in RETRIED:
                    raise error
                yield from self.again(error, getattr(error, "retry_after", None))
            else:
                error = Unreachable(f"no answer from the server: {reply or type(reply).__name__}")
                error.__cause__ = reply
                yield from self.again(error, None)

    def again(self, error: TomeError, retry_after: float | None) -> Steps:
        """The pause before the next attempt; raises ``error`` where there is none."""
        attempt = next(self._attempts)
        seconds = self._retry.pause(attempt, retry_after, self._draw())
        if attempt >= self._retry.attempts or self._clock() + seconds >= self._end:
            raise error
        yield Pause(seconds)
