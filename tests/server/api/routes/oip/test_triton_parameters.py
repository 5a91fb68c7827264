from __future__ import annotations

import pytest

from server.api.contract.parameter_values import parameter_text
from server.api.contract.params import parse_deadline
from server.api.routes.oip.triton_parameters import replace_triton_parameters
from server.errors import InvalidParameter


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(1, 1e-6), (1500, 0.0015), (2_000_000, 2), (10**14, 1e8), (2**64 - 1, 1e8)],
)
def test_timeout_is_a_deadline_in_microseconds(timeout, seconds):
    parameters = replace_triton_parameters({"r": 3, "timeout": timeout})
    assert set(parameters) == {"r", "deadline_ms"}
    text = parameter_text("deadline_ms", parameters["deadline_ms"])
    assert parse_deadline(text, arrival=0.0) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "parameters",
    [
        {"timeout": 0},
        {"priority": 0},
        {"sequence_id": 0, "sequence_start": False, "sequence_end": False},
        {"sequence_id": ""},
    ],
)
def test_values_that_ask_for_nothing_are_left_out(parameters):
    assert replace_triton_parameters({**parameters, "deadline_ms": 5}) == {"deadline_ms": 5}


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": 1},
        {"sequence_id": 7},
        {"sequence_id": "a"},
        {"sequence_start": True},
        {"sequence_end": True},
    ],
)
def test_extensions_that_are_not_supported_are_named(parameters):
    (name,) = parameters
    with pytest.raises(InvalidParameter, match=f"Triton's {name} is not supported") as caught:
        replace_triton_parameters(parameters)
    assert caught.value.extensions["parameter"] == name


@pytest.mark.parametrize("timeout", [-1, 1.5, True, "1", [1]])
def test_a_malformed_timeout_is_refused(timeout):
    with pytest.raises(InvalidParameter, match="number of microseconds"):
        replace_triton_parameters({"timeout": timeout})


def test_one_limit_of_the_time_is_enough():
    with pytest.raises(InvalidParameter, match="give one"):
        replace_triton_parameters({"timeout": 5, "deadline_ms": 5})
