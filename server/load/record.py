"""What became of one request."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Record:
    """One request of a run. Times are seconds from when measuring began; those of the warm-up are negative.

    Attributes:
        number: its place among all requests of the run.
        picture: index of what was sent.
        r: what was asked for.
        intended: when it was to be sent; in a closed loop when it was.
        sent: when it was handed to its connection; None where it came to none.
        done: when its answer was complete, or it failed.
        status: of the answer, 0 where there is none.
        failure: why there is no answer: ``connect``, ``closed``, ``timeout`` or ``protocol``.
        reason: of a refusal, from its problem document.
        body: of the answer, for whoever looks at the record when it is made; not kept.
        used: the schedule that the answer names.
    """

    number: int
    picture: int
    r: str
    intended: float
    sent: float | None = None
    done: float = 0.0
    status: int = 0
    failure: str = ""
    reason: str = ""
    body: bytes = b""
    used: str = ""
    tokens: int = 0
    batch: int = 0

    @property
    def response(self) -> float:
        """Seconds from when it was to be sent: what a client waits that knows nothing of the server's troubles."""
        return self.done - self.intended

    @property
    def service(self) -> float:
        """Seconds from when it was sent."""
        return self.done - (self.intended if self.sent is None else self.sent)

    def read_answer(self) -> None:
        """Take from the body what the report needs; a body that is no answer of ours leaves the fields as they are."""
        try:
            answer = json.loads(self.body)
            if self.status == 200:
                self.used = str(answer["r"])
                self.batch = int(answer["batch_size"])
                self.tokens = int(answer["tokens"]["output"])
            else:
                self.reason = str(answer.get("reason") or answer["type"].rpartition(":")[2])
        except (ValueError, KeyError, TypeError, AttributeError):
            return


class Observer(Protocol):
    """Is shown each record when its request is over, those of the warm-up too, with the answer's ``body``."""

    def __call__(self, record: Record, /) -> None:
        """Look at ``record``; this runs in the event loop, so it should be quick."""


def digest(body: bytes) -> str:
    """A hash of what an answer says of its image: equal for equal results, whatever their timing and batch.

    Raises:
        ValueError: ``body`` is no answer to one image.
    """
    answer: dict[str, Any] = json.loads(body)
    kept = {
        name: answer[name]
        for name in ("model", "r", "predictions", "embedding", "tokens")
        if name in answer
    }
    if not kept:
        raise ValueError("the body is no answer to one image")
    return hashlib.blake2b(json.dumps(kept, sort_keys=True).encode(), digest_size=16).hexdigest()
