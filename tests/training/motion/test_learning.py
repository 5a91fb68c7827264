"""A run of the motion model resumes where it was interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tome_core import Schedule
from training.motion import train
from training.motion.train import MotionRun
from training.stages import Stage

STAGE = Stage("merged", (0, Schedule.parse("44:-1")), steps=2, batch_size=2, report=1)


@pytest.fixture(autouse=True)
def few_made_up_garments(monkeypatch: pytest.MonkeyPatch) -> None:
    garments = torch.rand(4, 28, 28, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(train, "garments", lambda split, device: garments)
    monkeypatch.setattr(train, "LEVELS", ("0", "44:-1"))
    monkeypatch.setattr(train, "REPORTED_LEVELS", ("44:-1",))


def test_an_interrupted_stage_ends_as_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MotionRun(tmp_path / "whole", seed=1, device="cpu", held_out=2)
    whole.train(STAGE)
    parts = MotionRun(tmp_path / "parts", seed=1, device="cpu", held_out=2)
    with monkeypatch.context() as patched:
        patched.setattr(parts, "log", _interrupt)
        with pytest.raises(RuntimeError, match="interrupted"):
            parts.train(STAGE)
    parts.train(STAGE)
    weights = load_file(tmp_path / "parts/merged.safetensors")
    for name, expected in load_file(tmp_path / "whole/merged.safetensors").items():
        assert torch.equal(weights[name], expected), name
    log = (tmp_path / "parts/log.jsonl").read_text().splitlines()
    first = json.loads(log[0])
    assert first["step"] == 2  # and not 1, again
    result = json.loads((tmp_path / "parts/merged.json").read_text())
    assert set(result["held_out_clips"]) == {"0", "44:-1"}


def _interrupt(record: object) -> None:
    raise RuntimeError("interrupted after the first step was saved")


def test_a_stage_that_starts_from_another_needs_its_weights(tmp_path: Path) -> None:
    run = MotionRun(tmp_path, seed=1, device="cpu", held_out=2)
    with pytest.raises(
        SystemExit, match=r"local\.safetensors is missing: train --stage local first"
    ):
        run.train(replace(STAGE, start="local"))


def test_a_stage_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    run = MotionRun(tmp_path, seed=1, device="cpu", held_out=2)
    run.train(replace(STAGE, name="local", steps=1))
    local = load_file(tmp_path / "local.safetensors")
    run.train(replace(STAGE, start="local", lr=(0.0, 0.0)))
    for name, weights in load_file(tmp_path / "merged.safetensors").items():
        assert torch.equal(weights, local[name]), name
