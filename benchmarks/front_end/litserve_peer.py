"""A peer: LitServe with what its documentation has users write: an upload, decoded, then a batch.

``python -m benchmarks.front_end.litserve_peer --port 8000`` serves ``/predict``, which takes a form
with the file ``image``, or ``tensor`` with pixels.
"""

from __future__ import annotations

import argparse
from typing import Any

import litserve

from benchmarks.front_end.tiny_network import (
    BATCH,
    DECODERS,
    WAIT_MILLISECONDS,
    Classifier,
    Pixels,
    as_pixels,
    decode,
)


class Api(litserve.LitAPI):
    """Batches of uploads to the best classes."""

    def __init__(self) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=WAIT_MILLISECONDS / 1000)

    def setup(self, device: str) -> None:
        """Make the network, in the process that will run it."""
        self.classifier = Classifier()

    def decode_request(self, request) -> Pixels:  # LitServe reads the annotation of a request
        """The file of a form."""
        if "tensor" in request:
            return as_pixels(request["tensor"].file.read())
        return decode(request["image"].file.read())

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """A request may have several images: they are put together with the network."""
        return inputs

    def predict(self, x: list[Pixels]) -> list[Any]:
        """Run one batch."""
        return self.classifier.classify(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        """The answers of each request."""
        return output

    def encode_response(self, output: list[Any]) -> dict[str, Any]:
        """As JSON."""
        return {"predictions": output}


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_end.litserve_peer")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-servers", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args()
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=DECODERS, timeout=60)
    server.run(
        port=args.port,
        num_api_servers=args.api_servers,
        generate_client_file=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
