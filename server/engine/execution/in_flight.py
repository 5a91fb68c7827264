"""A batch that was handed to the device, and whose results are on their way to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from server.engine.device.readout import Readout
from server.engine.execution.prediction import Prediction
from server.ipc.messages import OutputKind


class BatchInFlight:
    """A batch in flight. On a CPU it has run already; on a GPU the host is free meanwhile.

    Args:
        readout: of the batch, on the device.
        top_k: how many classes each image wants.
        wants: what each image wants.
    """

    def __init__(self, readout: Readout, top_k: Sequence[int], wants: Sequence[OutputKind]) -> None:
        outputs = readout.outputs
        device = readout.best.device
        self._top = readout.top
        self._top_k = top_k
        self._wants = wants
        # Page-locked memory, which PyTorch takes for copies that the host does not wait for.
        self._best = readout.best.to("cpu", non_blocking=True)
        self._features = (
            outputs.features.float().to("cpu", non_blocking=True) if "features" in wants else None
        )
        self._source = (
            None if outputs.source is None else outputs.source.int().to("cpu", non_blocking=True)
        )
        self._arrived: Any = None
        if device.type == "cuda":
            # A waiting host sleeps: the cores are for those who decode.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(device))

    def done(self) -> bool:
        """Whether `collect` would not have to wait."""
        try:
            return self._arrived is None or self._arrived.query()
        except RuntimeError:  # of the device, which `collect` raises again
            return True

    def collect(self) -> list[Prediction]:
        """Wait for the results. Raises what the device raised meanwhile."""
        if self._arrived is not None:
            self._arrived.synchronize()
        best = self._best.numpy()
        top = self._top
        scores = best[:, :top].tolist()
        classes = best[:, top : 2 * top].astype(np.int64).tolist()
        finite = (best[:, -1] == 1).tolist()
        features = self._rows(self._features, "features")
        source = self._rows(self._source, "source")
        rows = zip(scores, classes, finite, features, source, self._top_k, strict=True)
        return [
            Prediction(tuple(scores[:top_k]), tuple(classes[:top_k]), finite, features, source)
            for scores, classes, finite, features, source, top_k in rows
        ]

    def _rows(self, values: Tensor | None, want: OutputKind) -> list[bytes]:
        if values is None:
            return [b""] * len(self._wants)
        return pack_rows(values.numpy(), [each == want for each in self._wants])


def pack_rows(rows: npt.NDArray[Any], wanted: Sequence[bool]) -> list[bytes]:
    """Those of ``rows (B, N)`` that are wanted as little-endian bytes, and nothing for the others."""
    little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    return [row.tobytes() if want else b"" for row, want in zip(little, wanted, strict=True)]
