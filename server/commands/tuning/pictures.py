"""Pictures without labels: which there are, and batches of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.commands.datasets import check_folder, load_fashion_mnist
from server.commands.parallel_decoding import decode_files
from server.errors import ConfigError
from server.media.files import media_files_below
from server.media.modality import Modality
from server.media.transforms import Transform


@dataclass(frozen=True)
class Pictures:
    """Pictures to measure on.

    Attributes:
        name: of the folder.
        names: of each picture, for messages.
        sources: files, or pixels ``uint8 (M, H, W)``.
        files: that they are in.
    """

    name: str
    names: Sequence[str]
    sources: Sequence[Path] | np.ndarray
    files: Sequence[Path]

    def __len__(self) -> int:
        return len(self.names)

    def identity(self) -> list[list[object]]:
        """Return what tells these pictures from others: names, and size and time of each file."""
        return [list(self.names), *map(_file_identity, self.files)]


def _file_identity(file: Path) -> list[object]:
    """Return path, size and time of a file; the path alone of a link to a file that is missing."""
    try:
        stat = file.stat()
    except OSError:
        return [str(file)]
    return [str(file), stat.st_size, stat.st_mtime_ns]


def open_pictures(folder: Path, limit: int | None = None) -> Pictures:
    """Return the pictures in ``folder``, nested or not; or those of Fashion-MNIST's test files.

    Args:
        folder: of the pictures.
        limit: largest number of pictures, which are taken at equal distances.

    Raises:
        ConfigError: there is no such folder, it cannot be read, or it has no picture.
    """
    check_folder(folder)
    name = folder.resolve().name
    if any(folder.glob("t10k-images-idx3-ubyte*")):
        images, _ = load_fashion_mnist("test", folder)
        if len(images) == 0:
            raise ConfigError(f"the test files in {folder} hold no picture")
        chosen = _spread(len(images), limit)
        names = [f"{name}, image {index}" for index in chosen]
        return Pictures(name, names, images[chosen], sorted(folder.glob("t10k-images*")))
    try:
        paths = media_files_below(folder, Modality.IMAGE)
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror or error}") from error
    if not paths:
        raise ConfigError(f"{folder} holds no picture, nor do the folders in it")
    files = [paths[index] for index in _spread(len(paths), limit)]
    names = [str(file.relative_to(folder)) for file in files]
    return Pictures(name, names, files, files)


def _spread(count: int, limit: int | None) -> list[int]:
    """Return the indices of at most ``limit`` of ``count`` items, at equal distances."""
    if limit is None or limit >= count:
        return list(range(count))
    return [count * number // limit for number in range(limit)]


@dataclass
class PictureBatch:
    """One batch of pictures.

    Attributes:
        inputs: ``(B, C, H, W)``; B may be 0 in the last batch, after pictures that are unreadable.
        end: index of the picture that the next batch begins with.
        unreadable: why pictures since the previous batch cannot be decoded, by their names.
    """

    inputs: npt.NDArray[Any]
    end: int
    unreadable: dict[str, str] = field(default_factory=dict)


def picture_batches(
    transform: Transform, pictures: Pictures, start: int, size: int
) -> Iterator[PictureBatch]:
    """Yield batches of ``size`` pictures from ``start`` on; the last may be smaller.

    Pictures that cannot be decoded are passed over. None is decoded while the caller works on a
    batch, which it may be timing.
    """
    rows: list[npt.NDArray[Any]] = []
    unreadable: dict[str, str] = {}
    end = start
    names = itertools.islice(pictures.names, start, None)
    decoded = decode_files(transform, pictures.sources[start:])
    for name, inputs in zip(names, decoded, strict=True):
        end += 1
        if isinstance(inputs, ConfigError):
            unreadable[name] = str(inputs)
            continue
        rows.append(inputs.rows[0])
        if len(rows) == size:
            yield PictureBatch(np.stack(rows), end, unreadable)
            rows, unreadable = [], {}
    if rows or unreadable:
        yield PictureBatch(np.array(rows), end, unreadable)
