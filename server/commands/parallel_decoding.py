"""Files of a data set, decoded in parallel."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from server.commands.datasets import read_source
from server.commands.inputs import FileInputs
from server.errors import ConfigError
from server.hardware import usable_cores
from server.media.transforms import Transform, VideoTransform

# Images, sounds or windows of video that are decoded together, by as many threads as there are
# cores. A window of video takes megabytes, and a video may have many.
_DECODED_TOGETHER = 16


def decode_files(
    transform: Transform,
    sources: Iterable[Path | np.ndarray],
) -> Iterator[FileInputs | ConfigError]:
    """Yield the inputs of each source in order, or why it cannot be read or decoded.

    Files pass through the transform that serving uses. None is decoded while the caller works on
    what was yielded, which it may be timing.
    """
    remaining = iter(sources)
    files = _files_together(transform)
    with ThreadPoolExecutor(usable_cores()) as threads:
        while chunk := list(itertools.islice(remaining, files)):
            decoded = threads.map(partial(_decode, transform=transform), chunk)
            # All of them now: the threads rest before the first is used.
            yield from list(decoded)


def _decode(source: Path | np.ndarray, transform: Transform) -> FileInputs | ConfigError:
    try:
        return read_source(source, transform)
    except ConfigError as error:
        return error


def _files_together(transform: Transform) -> int:
    """Return how many files are decoded together."""
    if isinstance(transform, VideoTransform):
        return max(1, _DECODED_TOGETHER // (transform.clips * transform.crops))
    return _DECODED_TOGETHER
