"""Batches of a model's inputs, from a data set whose files are decoded in parallel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from server.commands.datasets import LabelledData, read_source
from server.commands.inputs import FileInputs, Row
from server.hardware import usable_cores
from server.media.transforms import Transform, VideoTransform

# Images, sounds or windows of video that are decoded together, by as many threads as there are
# cores. A window of video takes megabytes, and a video may have many.
_DECODED_TOGETHER = 16


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
    for item, (inputs, label) in enumerate(_decoded(transform, data)):
        for row in inputs.rows:
            yield _Labelled(row, targets[label], item)


def _decoded(transform: Transform, data: LabelledData) -> Iterator[tuple[FileInputs, int]]:
    """Yield the inputs and the class index of each file."""
    items = data.items()
    files = _files_together(transform)
    with ThreadPoolExecutor(usable_cores()) as threads:
        while chunk := list(itertools.islice(items, files)):
            sources: list[Path | np.ndarray] = [source for source, _ in chunk]
            decoded = threads.map(partial(read_source, transform=transform), sources)
            # All of them now: the threads rest before the first is used.
            for inputs, (_, label) in zip(list(decoded), chunk, strict=True):
                yield inputs, label


def _files_together(transform: Transform) -> int:
    """Return how many files are decoded together."""
    if isinstance(transform, VideoTransform):
        return max(1, _DECODED_TOGETHER // (transform.clips * transform.crops))
    return _DECODED_TOGETHER
