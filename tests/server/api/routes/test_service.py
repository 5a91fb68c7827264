from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from server.api.pipeline.admission import Admission, BodyLimits
from server.api.routes.service import AppComponents, model_description
from server.errors import Overloaded
from server.ipc.messages import Level, ModelInfo
from tests.server.api.pipeline.fakes import MODEL, FakePool


def test_a_model_is_described_with_its_levels():
    level = Level("2", tokens_out=3, relative_flops=0.5, speedup=1.5)
    described = model_description(replace(MODEL, levels=(level,))).model_dump()
    assert described["name"] == "tiny"
    assert described["input_size"] == [3, 8, 8]
    assert (described["classes"], described["tokens"], described["blocks"]) == (3, 5, 2)
    assert described["r_max"] == 2
    assert described["levels"] == [
        {
            "r": "2",
            "tokens_out": 3,
            "relative_flops": 0.5,
            "speedup": 1.5,
            "accuracy": None,
        }
    ]


def parts_of(models: dict[str, ModelInfo], ready: bool) -> AppComponents:
    limits = BodyLimits(1, 1, 1)
    admission = Admission(FakePool(ready=ready), limits)  # type: ignore[arg-type]
    engine = SimpleNamespace(models=models)
    return AppComponents(engine, admission, SimpleNamespace(), "0")  # type: ignore[arg-type]


def test_models_are_unknown_until_they_are_loaded():
    with pytest.raises(Overloaded, match="not loaded"):
        parts_of({}, ready=False).models()


def test_models_stay_known_while_an_engine_restarts():
    assert parts_of({"tiny": MODEL}, ready=False).models() == {"tiny": MODEL}
