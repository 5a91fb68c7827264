"""Classes are matched with labels; `test_cli` and `test_sounds` run the command."""

from __future__ import annotations

import numpy as np
import pytest

from server.commands.datasets import LabelledData
from server.commands.evaluate import class_indices
from server.errors import ConfigError


def data(*classes: str) -> LabelledData:
    return LabelledData("animals", classes, np.empty((0, 2, 2), np.uint8), [])


def test_classes_are_matched_by_name() -> None:
    assert class_indices(data("Dog", "cat"), ["cat", "bird", "dog"]) == [2, 0]


def test_as_many_classes_as_labels_are_matched_by_position() -> None:
    assert class_indices(data("n01", "n02"), ["cat", "dog"]) == [0, 1]


def test_a_class_without_a_label_is_an_error() -> None:
    with pytest.raises(ConfigError, match="'fish' of animals is not a label of the model"):
        class_indices(data("cat", "fish"), ["cat", "bird", "dog"])
