"""Labelled files to measure accuracy on: one folder per class, or the Fashion-MNIST files.

A source is an encoded file, or an array of pixels, so that evaluation decodes and transforms it as
serving does.
"""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.commands.inputs import UNLIMITED, FileInputs, read_inputs
from server.errors import ConfigError, RequestError
from server.imaging.decode import to_pixels
from server.media.files import is_hidden, media_files
from server.media.modality import Modality
from server.media.transforms import ImageTransform, Transform

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FASHION_MNIST_PREFIXES = {"train": "train", "test": "t10k"}

_IDX_UINT8 = 0x08
_IDX_MAGIC_BYTES = 4  # two zeros, type, number of dimensions; then 4 bytes for each dimension


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ConfigError: the file is missing, is not IDX, or is shorter than its header says.
    """
    content = _read_unzipped(path)
    is_idx = len(content) >= _IDX_MAGIC_BYTES and content[:2] == b"\0\0"
    if not is_idx or content[2] != _IDX_UINT8:
        raise ConfigError(f"{path} is not an IDX file of unsigned bytes")
    dimensions = content[3]
    header_bytes = _IDX_MAGIC_BYTES + 4 * dimensions
    shape: tuple[int, ...] = ()
    if len(content) >= header_bytes:
        shape = struct.unpack_from(f">{dimensions}I", content, _IDX_MAGIC_BYTES)
    data_bytes = len(content) - header_bytes
    if not shape or data_bytes != math.prod(shape):
        raise ConfigError(f"{path} is truncated: its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _read_unzipped(path: Path) -> bytes:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            return file.read()
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def load_fashion_mnist(
    split: str,
    folder: Path = FASHION_MNIST_DIR,
) -> tuple[np.ndarray, np.ndarray]:
    """Return images ``uint8 (M, 28, 28)`` and labels ``uint8 (M,)`` of ``train`` or ``test``.

    Raises:
        ConfigError: a file is missing or broken, or images and labels do not match.
    """
    prefix = _FASHION_MNIST_PREFIXES[split]
    images = read_idx(_find_idx(folder, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find_idx(folder, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ConfigError(f"{folder}: {images.shape} images do not match {labels.shape} labels")
    return images, labels


def _find_idx(folder: Path, name: str) -> Path:
    for suffix in (".gz", ""):
        path = folder / f"{name}{suffix}"
        if path.exists():
            return path
    raise ConfigError(
        f"no {name}[.gz] in {folder}; on Debian `apt install"
        f" dataset-fashion-mnist` puts the four files in {FASHION_MNIST_DIR}"
    )


@dataclass(frozen=True)
class LabelledData:
    """A data set to evaluate on.

    Attributes:
        classes: name of the class of each index in `labels`.
        sources: files of one modality, or pixels ``uint8 (M, H, W)``.
        labels: class index of each source.
    """

    name: str
    classes: tuple[str, ...]
    sources: Sequence[Path] | np.ndarray
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)


def read_source(source: Path | np.ndarray, transform: Transform) -> FileInputs:
    """Return the inputs of a model for a source of a data set.

    A file is decoded as the server does it, but may have any size.

    Raises:
        ConfigError: the file cannot be read or decoded.
    """
    if not isinstance(source, Path):
        assert isinstance(transform, ImageTransform)
        return FileInputs((to_pixels(source, transform),))
    try:
        return read_inputs(source.read_bytes(), transform, UNLIMITED)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror or error}") from error
    except RequestError as error:
        raise ConfigError(f"{source} cannot be decoded: {error.detail}") from error


def check_folder(folder: Path | None) -> None:
    """Raise `ConfigError` if there is no ``folder``, before a model is loaded for it."""
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")


def open_dataset(
    folder: Path | None,
    limit: int | None = None,
    modality: Modality = Modality.IMAGE,
) -> LabelledData:
    """Open the sub-folders of ``folder``, one per class; or the Fashion-MNIST test files in it.

    Args:
        folder: by default where Debian installs Fashion-MNIST.
        limit: largest number of files.
        modality: which files are collected.

    Raises:
        ConfigError: there is no such folder, or nothing in it to evaluate on.
    """
    if modality is not Modality.IMAGE:
        if folder is None:
            kind = modality.noun
            raise ConfigError(
                f"the model takes {kind}s: name a folder of {kind}s, <class>/<{kind}>"
            )
        check_folder(folder)
        return _open_class_folders(folder, limit, modality)
    folder = folder or FASHION_MNIST_DIR
    has_idx_files = any(folder.glob("t10k-images-idx3-ubyte*"))
    if folder == FASHION_MNIST_DIR or has_idx_files:
        return _open_fashion_mnist(folder, limit)
    check_folder(folder)
    return _open_class_folders(folder, limit, modality)


def _open_fashion_mnist(folder: Path, limit: int | None) -> LabelledData:
    images, labels = load_fashion_mnist("test", folder)
    return LabelledData(
        name="fashion-mnist",
        classes=FASHION_MNIST_CLASSES,
        sources=images[:limit],
        labels=labels[:limit].tolist(),
    )


def _open_class_folders(folder: Path, limit: int | None, modality: Modality) -> LabelledData:
    class_folders = [child for child in folder.iterdir() if child.is_dir()]
    classes = sorted(child.name for child in class_folders if not is_hidden(child))
    paths: list[Path] = []
    labels: list[int] = []
    for index, name in enumerate(classes):
        for path in media_files(folder / name, modality):
            paths.append(path)
            labels.append(index)
    if not paths:
        kind = modality.noun
        raise ConfigError(
            f"{folder} has no sub-folder of {kind}s; expected {folder}/<class>/<{kind}>"
        )
    # With a limit, take files at equal distances, so that all classes are represented.
    step = 1 if limit is None else math.ceil(len(paths) / limit)
    return LabelledData(
        name=folder.name,
        classes=tuple(classes),
        sources=paths[::step],
        labels=labels[::step],
    )
