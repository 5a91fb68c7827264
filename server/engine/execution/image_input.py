"""One image of a batch, and the output that it requests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.ipc.messages import OutputKind
from tome_core.schedule import Schedule


class ImageInput(NamedTuple):
    """One image to run.

    Attributes:
        pixels: ``(C, H, W)``: uint8, or float32 if they are normalised, as spectrograms are.
        schedule: under which the image runs.
        top_k: number of classes to return, beside other outputs too; 0 for none.
        output_kind: the output to return.
        label_set: name of the labels to compare with; empty for the default, or a model without.
    """

    pixels: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    schedule: Schedule
    top_k: int
    output_kind: OutputKind = "classes"
    label_set: str = ""
