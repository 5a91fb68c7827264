"""The stages of the training, and how accuracy is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from server.catalog.entries import BUNDLED_SOUND
from tests.training.language.made_up import clip
from training.language import train
from training.language.accuracy import Windows, clip_classes, loss, wilson
from training.language.clips import save
from training.language.train import GPU_STAGES, Done, Run, Stage, learning_rate, parse_arguments

STAGE = Stage("merged", (0, 25), steps=2, batch_size=2, report=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    save(folder / "train.npz", [clip(label, 0.5) for label in range(5)])
    save(folder / "clips.npz", [clip(label, 0.4) for label in range(2)])
    return folder


def test_an_interrupted_stage_ends_as_the_whole_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LEVELS", (0, 25))
    whole = Run(tmp_path / "whole", data, seed=1, device="cpu")
    whole.train(STAGE)
    parts = Run(tmp_path / "parts", data, seed=1, device="cpu")
    interrupted = RuntimeError("interrupted after the first step was saved")
    with monkeypatch.context() as patched:
        patched.setattr(parts, "log", _raise(interrupted))
        with pytest.raises(RuntimeError, match="interrupted"):
            parts.train(STAGE)
    parts.train(STAGE)
    weights = load_file(tmp_path / "parts/merged.safetensors")
    for name, expected in load_file(tmp_path / "whole/merged.safetensors").items():
        assert torch.equal(weights[name], expected), name
    bundled = load_file(BUNDLED_SOUND.parent / "spoken-language.safetensors")
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in bundled.items()
    }
    result = json.loads((tmp_path / "parts/merged.json").read_text())
    assert set(result["held_out_clips"]) == {"0", "25"}


def _raise(error: Exception):
    def log(record: object) -> None:
        raise error

    return log


def test_stages_by_time_end_in_time() -> None:
    stage = GPU_STAGES[0]
    assert Done(steps=10, seconds=stage.seconds / 2).share_of(stage) == 0.5
    assert Done(steps=10, seconds=2 * stage.seconds).share_of(stage) == 1
    assert Done(steps=1).share_of(STAGE) == 0.5


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    rates = [learning_rate(STAGE, share / 100) for share in range(101)]
    assert max(rates) == pytest.approx(STAGE.lr[0])
    assert rates.index(max(rates)) == 5
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(STAGE.lr[1])


def test_the_recipe_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_arguments(["--device", "cpu", "--recipe", "gpu"]).recipe == "gpu"
    monkeypatch.setattr(train, "default_device", lambda: "cuda")
    assert parse_arguments([]).recipe == "gpu"
    monkeypatch.setattr(train, "default_device", lambda: "cpu")
    assert parse_arguments([]).recipe == "cpu"


def test_the_probabilities_of_a_clip_s_windows_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.2], [9.0, 0.0], [0.0, 1.0]])
    windows = Windows(torch.empty(0), torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    assert clip_classes(logits, windows).tolist() == [0, 1]


def test_the_interval_is_wilson_s() -> None:
    # Of R's prop.test(8, 10, correct=FALSE) and prop.test(0, 20, correct=FALSE).
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_losses_are_counted_in_pairs() -> None:
    before = torch.tensor([True] * 90 + [False] * 10)
    after = torch.tensor([True] * 88 + [False] * 11 + [True])
    points, error = loss(before, after)
    assert points == pytest.approx(0.01)
    assert error == pytest.approx(((3 - 100 * 0.01**2) / 99) ** 0.5 / 10)
    assert loss(before, before) == (0.0, 0.0)
