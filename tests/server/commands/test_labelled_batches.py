"""Files are decoded and batched in order, with the classes of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.commands.datasets import LabelledData, open_dataset
from server.commands.labelled_batches import batches
from server.errors import ConfigError
from server.media.transforms import ImageTransform

TRANSFORM = ImageTransform((1, 2, 2), "nearest", 1.0, "squash")


def test_images_are_batched_with_the_classes_of_the_model() -> None:
    pixels = np.arange(5, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    data = LabelledData("animals", ("cat", "dog"), pixels, [0, 1, 0, 1, 0])
    found = list(batches(TRANSFORM, data, targets=[7, 9], size=2))
    assert [part.inputs.shape for part in found] == [(2, 1, 2, 2), (2, 1, 2, 2), (1, 1, 2, 2)]
    assert [part.labels.tolist() for part in found] == [[7, 9], [7, 9], [7]]
    assert [part.items.tolist() for part in found] == [[0, 1], [2, 3], [4]]
    assert [part.inputs[0, 0, 0, 0] for part in found] == [0, 2, 4]


def folder_of(count: int, folder: Path) -> Path:
    (folder / "cat").mkdir()
    for number in range(count):
        Image.new("L", (2, 2), number).save(folder / "cat" / f"{number:03}.png")
    return folder


def test_files_that_are_decoded_in_parallel_stay_in_order(tmp_path: Path) -> None:
    data = open_dataset(folder_of(40, tmp_path))
    found = list(batches(TRANSFORM, data, targets=[0], size=7))
    shades = np.concatenate([part.inputs[:, 0, 0, 0] for part in found])
    assert shades.tolist() == list(range(40))


def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    folder_of(3, tmp_path)
    (tmp_path / "cat" / "001.png").write_bytes(b"no image")
    data = open_dataset(tmp_path)
    with pytest.raises(ConfigError, match=r"001\.png cannot be decoded"):
        list(batches(TRANSFORM, data, targets=[0], size=2))
