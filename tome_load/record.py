"""The record of one request: when it was sent, and its outcome."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol

# Members of an answer that depend on its upload and schedule alone.
_RESULT_MEMBERS = ("model", "r", "predictions", "embedding", "tokens", "media", "windows")


@dataclass(slots=True)
class Record:
    """One request of a run.

    Times are in seconds from the start of the measurement; those of the warm-up are negative.

    Attributes:
        number: its position among all requests of the run.
        upload: index of the file that was sent.
        r: schedule in the request.
        intended: when it was planned to be sent; in a closed loop when it was sent.
        sent: when it was written to its connection; None if there was no connection.
        ended: when its answer was complete, or it failed.
        status: HTTP status of the answer, 0 without one.
        failure: why there is no answer: ``connect``, ``closed``, ``timeout`` or ``protocol``.
        reason: why the server refused it, from the problem document.
        body: body of the answer, for the observer only; not kept.
        used: schedule in the answer.
        tokens: tokens after the last block.
        batch: images in the same batch.
    """

    number: int
    upload: int
    r: str
    intended: float
    sent: float | None = None
    ended: float = 0.0
    status: int = 0
    failure: str = ""
    reason: str = ""
    body: bytes = b""
    used: str = ""
    tokens: int = 0
    batch: int = 0

    @property
    def response(self) -> float:
        """Response time in seconds, from when it was planned to be sent."""
        return self.ended - self.intended

    @property
    def service(self) -> float:
        """Service time in seconds, from when it was sent."""
        start = self.intended if self.sent is None else self.sent
        return self.ended - start

    def read_answer(self) -> None:
        """Set the fields that the report needs from the body, if it is an answer of this server."""
        try:
            answer = json.loads(self.body)
            if self.status == 200:
                self.used = str(answer["r"])
                self.batch = int(answer["batch_size"])
                self.tokens = int(answer["tokens"]["output"])
            else:
                problem_type = answer.get("reason") or answer["type"].rpartition(":")[2]
                self.reason = str(problem_type)
        except (ValueError, KeyError, TypeError, AttributeError):
            return


class Observer(Protocol):
    """Is called with each record when its request has ended, those of the warm-up too."""

    def __call__(self, record: Record, /) -> None:
        """Observe ``record`` with its ``body``; runs in the event loop, so it must be fast."""


def digest(body: bytes) -> str:
    """Hash the result in an answer: equal for equal results, whatever their timing and batch.

    Raises:
        ValueError: ``body`` is not the answer to one image, sound or video.
    """
    answer: dict[str, Any] = json.loads(body)
    result = {name: answer[name] for name in _RESULT_MEMBERS if name in answer}
    if not result:
        raise ValueError("the body is not the answer to one image, sound or video")
    encoded = json.dumps(result, sort_keys=True).encode()
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()
