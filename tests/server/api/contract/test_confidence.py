"""The parameters ``confidence`` and ``confidence_r``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from starlette.datastructures import QueryParams

from server.api.contract.confidence import Confidence
from server.api.contract.params import Params, parse_params
from server.errors import InvalidParameter
from server.ipc.messages import ModelInfo, OutputKind
from tests.server.api.contract.models import MODELS
from tests.server.api.pipeline.fakes import AUDIO_MODEL
from tome_core.schedule import Schedule

SMALL = MODELS["small"]
# Margins of all levels but r=0 and the largest.
PROFILED = replace(
    SMALL,
    levels=tuple(
        replace(level, margin=0.1 * number if 0 < number < len(SMALL.levels) - 1 else None)
        for number, level in enumerate(SMALL.levels)
    ),
)


def parse(query: str, model: ModelInfo = SMALL, output: OutputKind = "classes") -> Params:
    return parse_params(QueryParams(query), {model.name: model}, "16", 0.0, output)


def confidence_of(query: str, model: ModelInfo = SMALL) -> Confidence:
    confidence = parse(query, model).confidence
    assert confidence is not None
    return confidence


def test_without_it_no_image_runs_again() -> None:
    assert parse("r=16").confidence is None
    assert parse("r=16&confidence=&confidence_r=").confidence is None


@pytest.mark.parametrize(("text", "margin"), [("0", 0.0), ("0.7", 0.7), ("1", 1.0), ("1.0", 1.0)])
def test_a_margin_counts_for_the_requested_schedule(text: str, margin: float) -> None:
    confidence = confidence_of(f"r=16&confidence={text}")
    assert confidence == Confidence({Schedule.constant(16): margin}, Schedule.constant(0))


def test_a_margin_counts_for_all_levels_that_may_be_chosen_but_the_second_pass() -> None:
    choices = parse("r=auto").choices
    assert set(confidence_of("r=auto&confidence=0.5").margins) == set(choices[1:])
    again = confidence_of("r=auto&confidence=0.5&confidence_r=4")
    assert again.schedule == Schedule.constant(4)
    assert set(again.margins) == set(choices[2:])


def test_what_merges_as_much_as_the_second_pass_is_certain() -> None:
    confidence = confidence_of("r=0&confidence=0.7")
    assert confidence.is_certain(Schedule.constant(0), (0.5, 0.5))


def test_an_image_is_certain_if_its_best_class_is_ahead_by_the_margin() -> None:
    confidence = confidence_of("r=16&confidence=0.5")
    r16 = Schedule.constant(16)
    assert confidence.is_certain(r16, (0.75, 0.25))
    assert not confidence.is_certain(r16, (0.7, 0.25, 0.05))
    assert confidence.is_certain(r16, (1.0,))


def test_auto_takes_the_margins_of_the_profile() -> None:
    level = PROFILED.levels[1]
    confidence = confidence_of(f"r={level.r}&confidence=auto", PROFILED)
    assert confidence.margins == {Schedule.parse(level.r): level.margin}


@pytest.mark.parametrize(
    ("query", "parameter", "detail"),
    [
        ("r=16&confidence=x", "confidence", "0 to 1, or auto"),
        ("r=16&confidence=1.1", "confidence", "0 to 1, or auto"),
        ("r=16&confidence=-0.1", "confidence", "0 to 1, or auto"),
        ("r=16&confidence=nan", "confidence", "0 to 1, or auto"),
        ("r=16&confidence=0_7", "confidence", "0 to 1, or auto"),
        ("r=16&confidence=auto", "confidence", "tome-serve evaluate"),
        ("r=16&confidence_r=0", "confidence_r", "which is not given"),
        ("r=16&confidence=0.7&confidence_r=x", "confidence_r", "is not a schedule"),
        ("r=16&confidence=0.7&confidence_r=auto", "confidence_r", "is not a schedule"),
        ("r=16&confidence=0.7&confidence_r=99", "confidence_r", "0 to 98"),
        ("r=16&confidence=0.7&confidence_r=16", "confidence_r", "must merge less"),
        ("r=8&confidence=0.7&confidence_r=16", "confidence_r", "must merge less"),
    ],
)
def test_values_that_are_not_allowed_are_refused(query: str, parameter: str, detail: str) -> None:
    with pytest.raises(InvalidParameter, match=detail) as caught:
        parse(query)
    assert caught.value.extensions["parameter"] == parameter


def test_auto_needs_a_margin_of_each_level_and_the_exact_model() -> None:
    with pytest.raises(InvalidParameter, match="tome-serve evaluate"):
        parse("r=auto&confidence=auto", PROFILED)  # the largest level has none
    with pytest.raises(InvalidParameter, match="second pass at r=0"):
        parse(f"r={PROFILED.levels[2].r}&confidence=auto&confidence_r=1", PROFILED)


@pytest.mark.parametrize("activation", ["sigmoid", "none"])
def test_a_model_without_softmax_does_not_say_how_certain_it_is(activation: str) -> None:
    with pytest.raises(InvalidParameter, match="no probabilities") as caught:
        parse("r=16&confidence=0.7", replace(SMALL, activation=activation))
    assert caught.value.extensions["parameter"] == "confidence"


def test_a_model_of_sound_refuses_it() -> None:
    with pytest.raises(InvalidParameter, match="confidence is for images"):
        parse("r=1&confidence=0.7", AUDIO_MODEL)


@pytest.mark.parametrize("output", ["features", "source"])
def test_only_classes_are_certain(output: OutputKind) -> None:
    with pytest.raises(InvalidParameter, match="no parameter 'confidence' here"):
        parse("r=16&confidence=0.7", output=output)


def test_two_classes_at_least_are_asked_for() -> None:
    assert parse("r=16&top_k=1").answer_top_k == 1
    assert parse("r=16&top_k=1&confidence=0.7").answer_top_k == 2
    assert parse("r=16&top_k=3&confidence=0.7").answer_top_k == 3
