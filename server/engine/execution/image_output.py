"""The outputs for one image of a batch."""

from __future__ import annotations

from typing import NamedTuple


class ImageOutput(NamedTuple):
    """The outputs that one image requested; see `server.ipc.messages.Outcome`.

    Attributes:
        finite: False where the model's output for the image contains NaN or infinity.
    """

    scores: tuple[float, ...]
    classes: tuple[int, ...]
    finite: bool
    features: bytes = b""
    source: bytes = b""
