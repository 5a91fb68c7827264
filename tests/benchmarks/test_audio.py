"""The benchmark of sound on tiny models. No time is checked, only that both r run."""

from __future__ import annotations

from io import StringIO

import pytest
import torch
from rich.console import Console

from benchmarks.audio import MODELS, Model, Row, measure, table
from benchmarks.measure import Plan

CPU = torch.device("cpu")
TINY = {"embed_dim": 32, "num_heads": 2, "num_classes": 7}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_both_levels_of_a_model_are_measured(model: Model) -> None:
    channels, height, width = model.size
    frames_last = width > height
    size = (channels, 128, 96) if frames_last else (channels, 96, 128)
    tiny = Model(model.name, model.timm, size, 8, 1.0, "", {**model.arguments, **TINY})
    row = measure(tiny, CPU, "float32", Plan(rounds=3, turn_seconds=0.0), depth=2)
    assert row.dtype == "float32"
    assert row.tokens[1] == row.tokens[0] - 16
    assert min(row.seconds) > 0
    assert row.bound > 1


def test_a_missed_bar_shows() -> None:
    rows = [
        Row(MODELS[0], "float32", (513, 37), (2.0, 1.0), 2.0, 1.97),
        Row(MODELS[1], "bfloat16", (1214, 80), (3.0, 2.0), 1.5, 2.05),
    ]
    console = Console(file=StringIO(), width=160)
    console.print(table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "AudioMAE ViT-B" in text
    assert "2000, 1000" in text
    assert text.count("missed") == 1
    assert rows[0].passes
    assert not rows[1].passes
