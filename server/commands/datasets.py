"""Labelled images to measure accuracy on: a folder with one sub-folder per class, or the Fashion-MNIST files.

Items are ``(image, class index)``; an image is whatever `PIL.Image.open` takes (a path), or a PIL
image made from an array, so that evaluation goes through the very transform that serving uses.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from server.errors import ConfigError

FASHION_MNIST_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_IDX_UINT8 = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file of unsigned bytes, gzipped or not (format: yann.lecun.com/exdb/mnist).

    Raises:
        ConfigError: the file is missing, is not IDX, or is shorter than its header says.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _IDX_UINT8:
        raise ConfigError(f"{path} is not an IDX file of unsigned bytes")
    dims = raw[3]
    header = 4 + 4 * dims
    shape = struct.unpack(f">{dims}I", raw[4:header]) if len(raw) >= header else ()
    if not shape or len(raw) - header != int(np.prod(shape)):
        raise ConfigError(f"{path} is truncated: its header says {shape}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def load_fashion_mnist(
    split: str, folder: Path = FASHION_MNIST_DIR
) -> tuple[np.ndarray, np.ndarray]:
    """Images ``uint8 (M, 28, 28)`` and labels ``uint8 (M,)`` of ``split`` (``train`` or ``test``).

    Raises:
        ConfigError: a file is missing or broken, or images and labels do not match.
    """
    prefix = {"train": "train", "test": "t10k"}[split]

    def find(kind: str) -> Path:
        for suffix in (".gz", ""):
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            if path.exists():
                return path
        raise ConfigError(
            f"no {prefix}-{kind}-ubyte[.gz] in {folder}; on Debian `apt install"
            f" dataset-fashion-mnist` puts the four files in {FASHION_MNIST_DIR}"
        )

    images = read_idx(find("images-idx3"))
    labels = read_idx(find("labels-idx1"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ConfigError(f"{folder}: {images.shape} images do not match {labels.shape} labels")
    return images, labels


@dataclass(frozen=True)
class LabelledImages:
    """A data set to evaluate on: ``classes`` names the class of each index that `items` yields."""

    name: str
    classes: tuple[str, ...]
    sources: Sequence[Path] | np.ndarray
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def items(self) -> Iterator[tuple[Image.Image, int]]:
        """Each image, loaded, with its class index. Raises `ConfigError` at one that cannot be read."""
        for source, label in zip(self.sources, self.labels, strict=True):
            if isinstance(source, Path):
                yield open_image(source), int(label)
            else:
                yield Image.fromarray(source), int(label)


def open_image(path: Path) -> Image.Image:
    """The image in ``path``, loaded. Raises `ConfigError` if it cannot be read."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:  # Pillow's errors on broken images are of this type
        raise ConfigError(f"{path} is not an image that can be read: {error}") from error


def open_dataset(folder: Path | None, limit: int | None = None) -> LabelledImages:
    """The data set in ``folder``: Fashion-MNIST test files, or one sub-folder of images per class.

    Raises:
        ConfigError: there is no such folder, or nothing in it that could be evaluated.
    """
    folder = folder or FASHION_MNIST_DIR
    if folder == FASHION_MNIST_DIR or any(folder.glob("t10k-images-idx3-ubyte*")):
        images, labels = load_fashion_mnist("test", folder)
        return LabelledImages(
            "fashion-mnist", FASHION_MNIST_CLASSES, images[:limit], labels[:limit].tolist()
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    classes = tuple(sorted(child.name for child in folder.iterdir() if child.is_dir()))
    pairs = [
        (path, index)
        for index, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if limit is not None and pairs:
        pairs = pairs[:: -(-len(pairs) // limit)]  # from all classes alike
    if not pairs:
        raise ConfigError(
            f"{folder} has no sub-folder of images; expected {folder}/<class>/<image>"
        )
    return LabelledImages(
        folder.name, classes, [path for path, _ in pairs], [index for _, index in pairs]
    )
