"""A batch in flight: launched on the device, with its results on their way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device.readout import Readout
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.ipc.messages import OutputKind


class BatchInFlight:
    """A batch in flight. On a CPU it has run already; on a GPU the host is free meanwhile.

    Args:
        readout: of the batch, on the device.
        images: of the batch.
    """

    def __init__(self, readout: Readout, images: Sequence[ImageInput]) -> None:
        outputs = readout.outputs
        self._top = readout.top
        self._images = images
        self._best = _start_copy(readout.best)
        self._features: Tensor | None = None
        if any(image.output_kind == "features" for image in images):
            self._features = _start_copy(outputs.features.float())
        self._source: Tensor | None = None
        if outputs.source is not None:
            self._source = _start_copy(outputs.source.int())
        self._copied: Any = None
        device = readout.best.device
        if device.type == "cuda":
            # The host sleeps while it waits for a blocking event, and leaves its core to decoding.
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record(torch.cuda.current_stream(device))

    def done(self) -> bool:
        """Return whether `collect` returns without waiting."""
        if self._copied is None:
            return True
        try:
            return bool(self._copied.query())
        except RuntimeError:  # an error of the device, which `collect` raises again
            return True

    def collect(self) -> list[ImageOutput]:
        """Wait for the results. Raises what the device has raised since the launch."""
        if self._copied is not None:
            self._copied.synchronize()
        best = self._best.numpy()
        top = self._top
        rows = zip(
            best[:, :top].tolist(),
            best[:, top : 2 * top].astype(np.int64).tolist(),
            (best[:, -1] == 1).tolist(),
            self._packed(self._features, "features"),
            self._packed(self._source, "source"),
            self._images,
            strict=True,
        )
        return [
            ImageOutput(
                tuple(scores[: image.top_k]),
                tuple(classes[: image.top_k]),
                finite,
                features,
                source,
            )
            for scores, classes, finite, features, source, image in rows
        ]

    def _packed(self, values: Tensor | None, output: OutputKind) -> list[bytes]:
        """Return the rows of ``values`` for the images that request ``output``."""
        if values is None:
            return [b""] * len(self._images)
        is_requested = [image.output_kind == output for image in self._images]
        return pack_rows(values.numpy(), is_requested)


def _start_copy(values: Tensor) -> Tensor:
    """Start to copy ``values`` to the host.

    From a GPU, PyTorch copies into pinned memory, and the host does not wait.
    """
    return values.to("cpu", non_blocking=True)


def pack_rows(
    rows: npt.NDArray[Any],
    is_requested: Sequence[bool],
) -> list[bytes]:
    """Return each requested row of ``rows (B, N)`` as little-endian bytes, others as no bytes."""
    little_endian = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [
        row.tobytes() if requested else b""
        for row, requested in zip(little_endian, is_requested, strict=True)
    ]
