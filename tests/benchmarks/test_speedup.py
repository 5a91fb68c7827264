"""The benchmarks of the literature's models on tiny ones. No time is checked, only that all run."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import audio, images, video
from benchmarks.measure import Plan
from benchmarks.speedup import Level, Model, Row, measure, table

CPU = torch.device("cpu")
PLAN = Plan(rounds=3, turn_seconds=0.0)
LEVELS = (Level("4", bar=2.0), Level("4:-1"))
WIDTH: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "num_classes": 7}
SMALL_INPUTS: dict[str, dict[str, Any]] = {
    "mae-l": {"img_size": 64},
    "deit-s": {"img_size": 64},
    "audiomae-b": {"img_size": (96, 128)},
    "ast-b": {"img_size": (128, 96)},
}
CLIP: dict[str, Any] = {"img_size": 64, "frames": 8}
ALL_MODELS = [*images.MODELS, *audio.MODELS, *video.MODELS]


@pytest.mark.parametrize("model", ALL_MODELS, ids=lambda model: model.key)
def test_all_levels_of_a_model_are_measured(model: Model) -> None:
    size = SMALL_INPUTS.get(model.key, CLIP)
    tiny = replace(model, levels=LEVELS, arguments={**model.arguments, **size, **WIDTH})
    turns: list[None] = []
    rows = measure(tiny, CPU, "float32", PLAN, (1, 2), depth=2, on_turn=lambda: turns.append(None))
    assert len(turns) == 2 * 3 * 3
    assert [(row.batch, row.level) for row in rows] == [
        (batch, level) for batch in (1, 2) for level in LEVELS
    ]
    for row in rows:
        assert row.dtype == "float32"
        assert row.tokens[1] == row.tokens[0] - 8
        assert min(row.seconds) > 0
        assert row.bound > 1


def test_models_are_named_on_the_command_line() -> None:
    keys = [model.key for model in ALL_MODELS]
    assert keys == [
        *("mae-l", "deit-s"),
        *("audiomae-b", "ast-b"),
        *("mae-st-l", "videomae-s", "videomae-b", "vivit-b"),
    ]


def test_a_missed_bar_shows() -> None:
    model = video.MODELS[0]
    constant, decreasing = model.levels
    rows = [
        Row(model, constant, "float32", 1, (1569, 38), (2.0, 0.0951), 2.1, 2.13),
        Row(model, decreasing, "float32", 1, (1569, 20), (0.09996, 0.003), 2.5, 3.25),
    ]
    console = Console(file=StringIO(), width=160)
    console.print(table(rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "MAE-ST ViT-L" in text
    assert "2000, 95.1" in text
    assert "100, 3.00" in text
    assert text.count("missed") == 1
    assert rows[0].passes
    assert not rows[1].passes
