"""What one image of a batch gave."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """What one image gave, as far as it was wanted; see `server.ipc.messages.Outcome`.

    Attributes:
        finite: False where the model gave NaN or infinity.
    """

    scores: tuple[float, ...]
    classes: tuple[int, ...]
    finite: bool
    features: bytes = b""
    source: bytes = b""
