"""The schedules that a request allows: a named one, the default, or levels for ``r=auto``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.contract.auto_schedules import drop_slow_levels
from server.api.contract.parameter_values import is_integer
from server.api.contract.params import clamp_schedule, parse_schedules
from server.errors import InvalidParameter
from server.ipc.messages import ModelInfo
from tests.server.api.contract.models import LEVELS, MODELS, level, model
from tome_core.schedule import Schedule


def parse(
    query: dict[str, str], default_r: str = "0", served: ModelInfo = MODELS["small"]
) -> tuple[Schedule, ...]:
    return parse_schedules(query, default_r, served)


def constant_schedules(*counts: int) -> tuple[Schedule, ...]:
    return tuple(Schedule.constant(r) for r in counts)


@pytest.mark.parametrize(
    ("r", "schedule"),
    [
        ("16", Schedule.constant(16)),
        ("98", Schedule.constant(98)),
        ("16:-1", Schedule.linear(16, -1)),
        ("98:0.5", Schedule.linear(98, 0.5)),
        ("30,0,5,20", Schedule.per_layer([30, 0, 5, 20])),
        (",".join(["98"] * 12), Schedule.per_layer([98] * 12)),
    ],
)
def test_a_named_schedule_is_the_only_one_allowed(r, schedule):
    assert parse({"r": r}) == (schedule,)


def test_a_named_r_overrides_a_default_of_auto():
    assert parse({"r": "3"}, default_r="auto") == constant_schedules(3)


@pytest.mark.parametrize(
    ("default_r", "clamped"),
    [("16", "8"), ("16:-1", "8:-1"), ("3,4,5,6,7", "3,4,5,6"), ("20,1", "8,1"), ("8", "8")],
)
def test_the_default_is_clamped_to_the_model(default_r, clamped):
    assert parse({}, default_r, MODELS["tiny"]) == (Schedule.parse(clamped),)
    schedule = Schedule.parse(default_r)
    assert clamp_schedule(schedule, MODELS["small"]) == schedule


@pytest.mark.parametrize(
    ("bounds", "allowed"),
    [
        ({}, [0, 4, 8, 12, 16]),
        ({"r_max": ""}, [0, 4, 8, 12, 16]),
        ({"r_max": "98"}, [0, 4, 8, 12, 16]),
        ({"r_max": "11"}, [0, 4, 8]),
        ({"r_max": "0"}, [0]),
        ({"min_accuracy": "90.8"}, [0, 4, 8]),  # r=12 is not in the profile
        ({"min_accuracy": "90.9"}, [4]),
        ({"min_accuracy": "0", "r_max": "16"}, [0, 4, 8, 16]),
        # What the interval shows counts, where there is one.
        ({"min_agreement": "99.4"}, [0]),
        ({"min_agreement": "99"}, [0, 4]),
        ({"min_agreement": "97"}, [0, 4, 8]),
        ({"min_agreement": "96", "min_accuracy": "90.8"}, [0, 4, 8]),
        ({"min_fidelity": "0.996"}, [0]),
        ({"min_fidelity": "0.99"}, [0, 4, 8]),
        ({"min_fidelity": "0.97", "min_agreement": "96"}, [0, 4, 8]),
        ({"min_fidelity": "0"}, [0, 4, 8, 16]),
    ],
)
def test_auto_allows_the_levels_within_its_bounds(bounds, allowed):
    assert parse({"r": "auto", **bounds}) == constant_schedules(*allowed)
    assert parse(bounds, default_r="auto") == constant_schedules(*allowed)


# The profile of r=12 was written before it had what follows the margin, and r=16 has no margin.
CASCADES = model(
    levels=(
        level(0, accuracy=90.9, agreement=100, agreement_low=100, cosine=1),
        level(
            8,
            accuracy=90.5,
            agreement=98,
            agreement_low=97,
            margin=0.6,
            margin_agreement=99.9,
            cascade_accuracy=90.8,
            cosine=0.98,
        ),
        level(12, accuracy=90.3, agreement=97, agreement_low=96, margin=0.7),
        level(16, accuracy=90.1, agreement=96, agreement_low=95),
    )
)


@pytest.mark.parametrize(
    ("parameters", "allowed"),
    [
        ({"min_agreement": "99"}, [0]),
        ({"min_agreement": "99", "confidence": "auto"}, [0, 8]),
        ({"min_agreement": "99.9", "confidence": "0.6"}, [0, 8]),
        ({"min_agreement": "99", "confidence": "0.7", "confidence_r": "0"}, [0, 8]),
        ({"min_accuracy": "90.8", "confidence": "auto"}, [0, 8]),
        # The profile does not show it: what counts is the quality without second passes.
        ({"min_agreement": "99", "confidence": "0.59"}, [0]),
        ({"min_agreement": "99", "confidence": "0.7", "confidence_r": "4"}, [0]),
        ({"min_agreement": "96", "confidence": "1"}, [0, 8, 12]),
        ({"min_accuracy": "90.8"}, [0]),
        # They change classes, and no embedding.
        ({"min_fidelity": "0.99", "confidence": "auto"}, [0]),
    ],
)
def test_second_passes_count_for_the_bounds_as_far_as_the_profile_shows(parameters, allowed):
    assert parse({"r": "auto", **parameters}, served=CASCADES) == constant_schedules(*allowed)


def test_a_margin_that_is_malformed_is_refused_beside_a_bound():
    query = {"r": "auto", "min_agreement": "99", "confidence": "x"}
    with pytest.raises(InvalidParameter, match="0 to 1, or auto"):
        parse(query, served=CASCADES)


@pytest.mark.parametrize(
    ("speedups", "bounds", "allowed"),
    [
        ((1.0, 1.2, 1.4, 1.6, 2.0), {}, [0, 4, 8, 12, 16]),
        ((1.0, 0.8, 0.95, 1.1, 1.3), {}, [0, 12, 16]),  # r=4 and r=8 are slower than r=0
        ((1.0, 1.2, 1.5, 1.5, 1.4), {}, [0, 4, 8]),  # r=12 and r=16 are no faster than r=8
        ((1.0, 0.8, 0.9, 0.9, 0.95), {}, [0]),
        ((1.0, 0.8, 0.9, 1.2, 1.4), {"r_max": "8"}, [0]),
        # Only r=4 is accurate enough.
        ((1.0, 0.8, 0.9, 1.2, 1.4), {"min_accuracy": "90.9"}, [4]),
        ((1.0, None, None, 0.9, 1.4), {}, [0, 4, 8, 16]),
    ],
)
def test_auto_skips_levels_that_gain_no_speed(speedups, bounds, allowed):
    levels = tuple(
        replace(unmeasured, speedup=speedup)
        for unmeasured, speedup in zip(LEVELS, speedups, strict=True)
    )
    measured_model = model(levels=levels)
    assert parse({"r": "auto", **bounds}, served=measured_model) == constant_schedules(*allowed)
    # A client that names r gets it, fast or not.
    assert parse({"r": "4"}, served=measured_model) == constant_schedules(4)


@given(st.lists(st.none() | st.floats(0.1, 10), min_size=1, max_size=8))
def test_each_useful_level_is_faster_than_all_that_merge_less(speedups):
    levels = [level(r, speedup) for r, speedup in enumerate(speedups)]
    useful = drop_slow_levels(levels[::-1])
    assert useful[0] == levels[0]
    measured = [each.speedup for each in useful if each.speedup is not None]
    assert measured == sorted(set(measured))
    for index, each in enumerate(levels):
        milder_speedups = [other.speedup for other in levels[:index] if other.speedup is not None]
        is_useful = each.speedup is None or each.speedup > max(milder_speedups, default=0)
        assert (each in useful) == is_useful


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1_6", " 1", "²", "٣", "12345"])
def test_an_integer_has_ascii_digits_only_and_not_too_many(text):
    assert not is_integer(text, max_digits=4)


def test_an_integer_may_have_as_many_digits_as_allowed():
    assert is_integer("0", max_digits=4)
    assert is_integer("1234", max_digits=4)
