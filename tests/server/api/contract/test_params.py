"""The query of an image endpoint, parsed and checked against the requested model."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from server.api.contract.openapi_parameters import openapi_parameters
from server.api.contract.params import Params, parse_params
from server.errors import InvalidParameter, NotFound
from server.ipc.messages import OutputKind
from tests.server.api.contract.models import MODELS
from tome_core.schedule import Schedule

ARRIVAL = 100.0


def parse(query: str, default_r: str = "0", output: OutputKind = "classes") -> Params:
    return parse_params(QueryParams(query), MODELS, default_r, ARRIVAL, output)


def test_an_empty_query_gets_the_defaults():
    params = parse("")
    assert params.model.name == "small"
    assert params.choices == (Schedule.constant(0),)
    assert params.requested_r == "0"
    assert params.top_k == 5
    assert params.deadline is None


def test_the_default_top_k_is_at_most_the_number_of_classes():
    assert parse("model=tiny").top_k == 3


@pytest.mark.parametrize("r", ["16", "16:-1", "30,0,5,20"])
def test_the_requested_r_is_kept_as_sent(r):
    params = parse(f"r={r}")
    assert params.requested_r == r
    assert params.text == r


def test_a_clamped_default_shows_in_the_schedule_not_in_the_request():
    params = parse("model=tiny", default_r="16:-1")
    assert params.text == "8:-1"
    assert params.requested_r == "16:-1"


def test_auto_stays_auto_until_the_scheduler_chooses():
    for params in (parse("r=auto&r_max=8"), parse("r_max=8", default_r="auto")):
        assert params.choices == tuple(Schedule.constant(r) for r in (0, 4, 8))
        assert params.requested_r == "auto"
        assert params.text == "auto"


@pytest.mark.parametrize(
    ("query", "parameter", "detail"),
    [
        ("r=", "r", "0 to 98"),
        ("r=x", "r", "30,0,5,20"),
        ("r=-1", "r", "0 to 98"),
        ("r=1.5", "r", "0 to 98"),
        ("r=1_6", "r", "0 to 98"),
        ("r=99", "r", "0 to 98"),
        ("r=99:-1", "r", "0 to 98"),
        ("r=16:2", "r", "-1 to 1"),
        ("r=16:nan", "r", "-1 to 1"),
        ("r=16:1:1", "r", "-1 to 1"),
        ("r=1,99", "r", "0 to 98"),
        ("r=1,,2", "r", "one per block"),
        (f"r={','.join('1' * 13)}", "r", "12 blocks"),
        ("model=tiny&r=9", "r", "0 to 8"),
        (f"r={'9' * 5000}", "r", "0 to 98"),
        ("r_max=8", "r_max", "with r=0 there is nothing to choose"),
        ("r=8&min_accuracy=90", "min_accuracy", "with r=8 there is nothing to choose"),
        ("r=8&min_agreement=90", "min_agreement", "with r=8 there is nothing to choose"),
        ("r=auto&r_max=99", "r_max", "0 to 98"),
        ("r=auto&r_max=x", "r_max", "0 to 98"),
        ("r=auto&r_max=-1", "r_max", "0 to 98"),
        ("r=auto&min_accuracy=101", "min_accuracy", "0 to 100"),
        ("r=auto&min_accuracy=nan", "min_accuracy", "0 to 100"),
        ("r=auto&min_accuracy=99", "min_accuracy", "reaches 90.93%"),
        ("r=auto&r_max=0&min_accuracy=90.9", "min_accuracy", "reaches 90.88%"),
        ("r=auto&model=unknown&min_accuracy=1", "min_accuracy", "has no profile"),
        ("r=auto&min_agreement=101", "min_agreement", "0 to 100"),
        ("r=auto&min_agreement=9_0", "min_agreement", "0 to 100"),
        ("r=auto&min_accuracy=90.9&min_agreement=99.1", "min_agreement", "reaches 99%"),
        ("r=auto&model=unknown&min_agreement=1", "min_agreement", "`tome-serve tune` writes one"),
        ("r=8&min_fidelity=0.9", "min_fidelity", "with r=8 there is nothing to choose"),
        ("r=auto&min_fidelity=1.01", "min_fidelity", "0 to 1"),
        ("r=auto&min_fidelity=1e-1", "min_fidelity", "0 to 1"),
        ("r=auto&min_fidelity=-0.5", "min_fidelity", "0 to 1"),
        ("r=auto&min_accuracy=90.9&min_fidelity=0.996", "min_fidelity", "reaches 0.995"),
        (
            "r=auto&model=unknown&min_fidelity=0",
            "min_fidelity",
            "profile of its fidelity; `tome-serve evaluate --task embed --profile` writes one",
        ),
        ("top_k=0", "top_k", "1 to 10"),
        ("top_k=11", "top_k", "1 to 10"),
        ("top_k=-1", "top_k", "1 to 10"),
        ("top_k=x", "top_k", "1 to 10"),
        ("top_k=%C2%B2", "top_k", "1 to 10"),
        ("model=tiny&top_k=4", "top_k", "1 to 3"),
        ("deadline_ms=0", "deadline_ms", "positive"),
        ("deadline_ms=-5", "deadline_ms", "positive"),
        ("deadline_ms=nan", "deadline_ms", "positive"),
        ("deadline_ms=inf", "deadline_ms", "positive"),
        ("deadline_ms=soon", "deadline_ms", "positive"),
        ("topk=3", "topk", "r, model, top_k, deadline_ms, r_max, min_accuracy"),
        ("r=1&r=2", "r", "2 times"),
    ],
)
def test_an_invalid_parameter_is_named_with_what_is_allowed(query, parameter, detail):
    with pytest.raises(InvalidParameter) as info:
        parse(query)
    assert info.value.extensions["parameter"] == parameter
    assert detail in info.value.detail
    assert len(info.value.detail) < 300  # a long value of a client is cut


def test_an_unknown_model_is_answered_with_the_known_ones():
    with pytest.raises(NotFound, match="small, tiny, bare, unknown"):
        parse("model=big")


def test_the_deadline_counts_from_the_arrival():
    assert parse("deadline_ms=250").deadline == ARRIVAL + 0.25


@pytest.mark.parametrize("output", ["features", "source"])
def test_only_classification_has_a_top_k(output):
    params = parse("r=8", output=output)
    assert params.top_k == 0
    known = "r, model, deadline_ms, r_max, min_accuracy"
    with pytest.raises(InvalidParameter, match=f"no parameter 'top_k' here; there are {known}"):
        parse("top_k=3", output=output)


def test_only_classification_documents_what_is_of_classes():
    names = {parameter["name"] for parameter in openapi_parameters("classes")}
    others = {parameter["name"] for parameter in openapi_parameters("features")}
    assert names - others == {"top_k", "confidence", "confidence_r", "text"}


def test_a_model_without_a_classifier_serves_other_outputs():
    detail = "bare has no classifier; it serves /embed, /visualize, /v1/embeddings and /v2 only"
    with pytest.raises(InvalidParameter, match=detail) as info:
        parse("model=bare")
    assert info.value.extensions["parameter"] == "model"
    assert parse("model=bare", output="features").model.name == "bare"
