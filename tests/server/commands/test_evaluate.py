"""Classes are matched with labels, and images are batched; `test_cli` runs the command."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.commands.datasets import LabelledImages
from server.commands.evaluate import batches, class_indices
from server.errors import ConfigError
from server.media.transforms import ImageTransform


def data(*classes: str, images: int = 0) -> LabelledImages:
    pixels = np.arange(images, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    labels = [index % len(classes) for index in range(images)]
    return LabelledImages("animals", classes, pixels, labels)


def test_classes_are_matched_by_name() -> None:
    assert class_indices(data("Dog", "cat"), ["cat", "bird", "dog"]) == [2, 0]


def test_as_many_classes_as_labels_are_matched_by_position() -> None:
    assert class_indices(data("n01", "n02"), ["cat", "dog"]) == [0, 1]


def test_a_class_without_a_label_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'fish' of animals is not a label of the model"):
        class_indices(data("cat", "fish"), ["cat", "bird", "dog"])


def test_images_are_batched_with_the_classes_of_the_model() -> None:
    transform = ImageTransform((1, 2, 2), "nearest", 1.0, "squash")
    runner: Any = SimpleNamespace(model=SimpleNamespace(transform=transform))
    found = list(batches(runner, data("cat", "dog", images=5), targets=[7, 9], size=2))
    assert [pixels.shape for pixels, _ in found] == [(2, 1, 2, 2), (2, 1, 2, 2), (1, 1, 2, 2)]
    assert [labels.tolist() for _, labels in found] == [[7, 9], [7, 9], [7]]
    assert [pixels[0, 0, 0, 0] for pixels, _ in found] == [0, 2, 4]
