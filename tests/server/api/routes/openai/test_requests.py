"""What of a request for embeddings is known before its body is read."""

from __future__ import annotations

import pytest
from starlette.datastructures import QueryParams

from server.api.routes.openai.requests import check_query
from server.errors import InvalidParameter, NotFound
from tests.server.api.pipeline.fakes import AUDIO_MODEL, MODEL

MODELS = {"tiny": MODEL, "ear": AUDIO_MODEL}


@pytest.mark.parametrize(
    ("query", "model"),
    [
        ("", None),
        ("model=", None),
        ("model=ear&r=1", AUDIO_MODEL),
        ("model=tiny&r=auto&r_max=1", MODEL),
        # The model, and r=auto, may stand in the body.
        ("r=99&r_max=1&normalize=false&deadline_ms=5", None),
    ],
)
def test_a_query_may_name_the_model(query, model):
    assert check_query(QueryParams(query), MODELS) is model


@pytest.mark.parametrize(
    ("query", "error", "parameter"),
    [
        ("top_k=1", InvalidParameter, "top_k"),
        ("input=a", InvalidParameter, "input"),
        ("model=tiny&model=tiny", InvalidParameter, "model"),
        ("model=x", NotFound, "model"),
        ("model=tiny&r=99", InvalidParameter, "r"),
        ("normalize=1", InvalidParameter, "normalize"),
        ("deadline_ms=-1", InvalidParameter, "deadline_ms"),
    ],
)
def test_what_no_body_can_mend_is_refused(query, error, parameter):
    with pytest.raises(error) as caught:
        check_query(QueryParams(query), MODELS)
    assert caught.value.extensions["parameter"] == parameter
