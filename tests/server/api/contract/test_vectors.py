from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from server.api.contract.vectors import VectorForm, parse_vector_form, with_dimensions
from server.errors import InvalidParameter
from tests.server.api.pipeline.fakes import MODEL

WIDE = replace(MODEL, embedding_dim=4)
NESTED = replace(WIDE, matryoshka=True)


def apply(form: VectorForm, *numbers: float) -> list[float]:
    vector = form.apply(np.array(numbers, np.float32))
    assert vector.dtype == np.float32
    return vector.tolist()


def test_a_vector_is_shortened_and_then_scaled():
    assert apply(VectorForm(), 3, 4, 12) == [3, 4, 12]
    assert apply(VectorForm(dimensions=2), 3, 4, 12) == [3, 4]
    scaled = apply(VectorForm(normalize=True, dimensions=2), 3, 4, 12)
    assert scaled == pytest.approx([0.6, 0.8], abs=1e-7)


def test_no_vector_is_too_long_or_too_short_to_be_scaled():
    assert apply(VectorForm(normalize=True), 3e38, 0) == [1, 0]
    assert apply(VectorForm(normalize=True), 0, 1e-44) == [0, 1]
    assert apply(VectorForm(normalize=True), 0, 0) == [0, 0]


@pytest.mark.parametrize(("text", "value"), [(None, False), ("true", True), ("False", False)])
def test_normalize_is_true_or_false(text, value):
    assert parse_vector_form(text).normalize is value


def test_another_value_of_normalize_is_refused():
    with pytest.raises(InvalidParameter, match="allowed are true and false"):
        parse_vector_form("yes")


@pytest.mark.parametrize(("dimensions", "model"), [(None, WIDE), (4, WIDE), (1, NESTED)])
def test_dimensions_that_the_model_has(dimensions, model):
    assert with_dimensions(VectorForm(True), dimensions, model) == VectorForm(True, dimensions)


@pytest.mark.parametrize(
    ("dimensions", "model", "message"),
    [
        (3, WIDE, "cannot be shortened"),
        (5, NESTED, "from 1 to 4"),
        (0, NESTED, "from 1 to 4"),
        (True, NESTED, "a whole number"),
        ("3", NESTED, "a whole number"),
    ],
)
def test_dimensions_that_it_does_not_have(dimensions, model, message):
    with pytest.raises(InvalidParameter, match=message):
        with_dimensions(VectorForm(), dimensions, model)
