from __future__ import annotations

from dataclasses import replace

from server.api.routes.service import model_description
from server.ipc.messages import Level
from tests.server.api.pipeline.fakes import MODEL


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
