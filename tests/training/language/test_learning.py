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
from training.language.accuracy import Windows, clip_classes
from training.language.clips import save
from training.language.train import LanguageRun
from training.stages import Stage

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
    whole = LanguageRun(tmp_path / "whole", data, seed=1, device="cpu")
    whole.train(STAGE)
    parts = LanguageRun(tmp_path / "parts", data, seed=1, device="cpu")
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


def test_the_probabilities_of_a_clip_s_windows_are_averaged() -> None:
    logits = torch.tensor([[0.0, 0.2], [9.0, 0.0], [0.0, 1.0]])
    windows = Windows(torch.empty(0), torch.tensor([0, 0, 1]), torch.tensor([0, 1]))
    assert clip_classes(logits, windows).tolist() == [0, 1]
