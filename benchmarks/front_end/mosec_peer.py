"""A peer: mosec with what its documentation has users write.

Pictures go through two processes that decode to one that runs batches; pixels go to another one of
the latter kind. ``python -m benchmarks.front_end.mosec_peer --port 8000`` serves ``/inference`` and
``/tensor``; mosec reads the command line.
"""

from __future__ import annotations

from typing import Any

import mosec

from benchmarks.front_end.tiny_network import (
    BATCH,
    DECODERS,
    WAIT_MILLISECONDS,
    Classifier,
    Pixels,
    as_pixels,
    decode,
)


class Decode(mosec.Worker):
    """A picture to pixels."""

    def deserialize(self, data: bytes) -> bytes:
        """The body is the file."""
        return data

    def forward(self, data: bytes) -> Pixels:
        """Decode and resize."""
        return decode(data)


class Classify(mosec.Worker):
    """Batches of pixels to the best classes, as JSON."""

    def __init__(self) -> None:
        super().__init__()
        self._classifier = Classifier()

    def deserialize(self, data: bytes) -> Pixels:
        """Where it is the first stage, the body is the pixels."""
        return as_pixels(data)

    def forward(self, data: list[Pixels]) -> list[Any]:
        """Run one batch."""
        return self._classifier.classify(data)


def main() -> None:
    """Serve until told to stop."""
    server = mosec.Server()
    batching: dict[str, Any] = {"max_batch_size": BATCH, "max_wait_time": WAIT_MILLISECONDS}
    server.append_worker(Decode, num=DECODERS, route="/inference")
    server.append_worker(Classify, route="/inference", **batching)
    server.append_worker(Classify, route="/tensor", **batching)
    server.run()


if __name__ == "__main__":
    main()
