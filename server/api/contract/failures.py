"""What a client is told of an image for which the engine has no output."""

from __future__ import annotations

from collections.abc import Callable

from server.errors import DeadlineExceeded, InferenceFailed, Overloaded, Refusal, RequestError
from server.ipc.messages import Failure

# Device memory that other batches hold is free again within seconds.
_OUT_OF_MEMORY_RETRY_SECONDS = 5


def error_of(failure: Failure | None, retry_after: Callable[[], float]) -> RequestError:
    """Return the error with which a request fails whose image has ``failure``.

    Args:
        failure: None if there is no output and no reason.
        retry_after: returns the seconds until the queue is shorter.
    """
    match failure:
        case Failure.EXPIRED:
            return DeadlineExceeded("the deadline passed before the image ran")
        case Failure.REFUSED:
            return Overloaded(
                "the response would not be ready before the deadline",
                retry_after=retry_after(),
                reason=Refusal.DEADLINE,
            )
        case Failure.OUT_OF_MEMORY:
            return Overloaded(
                "the device ran out of memory for this image",
                retry_after=_OUT_OF_MEMORY_RETRY_SECONDS,
                reason=Refusal.OUT_OF_MEMORY,
            )
        case Failure.FAILED | Failure.CANCELLED | None:
            return InferenceFailed("the model gave no valid numbers for this image")
