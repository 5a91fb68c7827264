"""Batches of a model's inputs, from a data set whose files are decoded in parallel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.commands.datasets import LabelledData
from server.commands.inputs import Row
from server.commands.parallel_decoding import decode_files
from server.errors import ConfigError
from server.media.transforms import Transform


class LabelledBatch(NamedTuple):
    """One batch of a data set.

    Attributes:
        inputs: ``(B, C, H, W)``: uint8 pixels, or float32 log-mel.
        labels: the model's class for each, ``int64 (B,)``.
        items: index of the file that each belongs to, ``int64 (B,)``, ascending.
    """

    inputs: npt.NDArray[Any]
    labels: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]


class _Labelled(NamedTuple):
    row: Row
    label: int
    item: int


def batches(
    transform: Transform,
    data: LabelledData,
    targets: Sequence[int],
    size: int,
) -> Iterator[LabelledBatch]:
    """Yield batches of ``size`` inputs; the last may be smaller.

    Files pass through the transform that serving uses. None is decoded while the caller works on
    a batch, which it may be timing.

    Args:
        targets: the model's class for each class of ``data``.

    Raises:
        ConfigError: a file cannot be read or decoded.
    """
    rows = _rows(transform, data, targets)
    while chunk := list(itertools.islice(rows, size)):
        yield LabelledBatch(
            inputs=np.stack([each.row for each in chunk]),
            labels=np.array([each.label for each in chunk]),
            items=np.array([each.item for each in chunk]),
        )


def _rows(
    transform: Transform,
    data: LabelledData,
    targets: Sequence[int],
) -> Iterator[_Labelled]:
    """Yield the inputs of all files, in order."""
    decoded = decode_files(transform, data.sources)
    for item, (inputs, label) in enumerate(zip(decoded, data.labels, strict=True)):
        if isinstance(inputs, ConfigError):
            raise inputs
        for row in inputs.rows:
            yield _Labelled(row, targets[label], item)
