"""Weights on their way from a run into the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from server.catalog.entries import BUNDLED
from training.export import main
from training.models import vit
from training.train import WEIGHTS_FOLDER


def test_the_bundled_model_is_the_stage_merged() -> None:
    bundled = load_file(BUNDLED.with_name("fashion-mnist.safetensors"))
    merged = load_file(WEIGHTS_FOLDER / "merged.safetensors")
    assert bundled.keys() == merged.keys()
    assert all(torch.equal(bundled[key], merged[key]) for key in merged)


def test_weights_of_a_run_are_written_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = vit(7)
    torch.save({"model": network.bfloat16().state_dict()}, tmp_path / "coarse.pt")
    out = tmp_path / "coarse.safetensors"
    assert main(["--run", str(tmp_path), "--stage", "coarse", "--out", str(out)]) == 0
    written = load_file(out)
    assert written.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(written[key], value.half())


def test_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["--run", str(tmp_path / "none"), "--out", str(out)]) == 1
    assert "--run names the folder of a run that has trained merged" in capsys.readouterr().err
    assert main(["--stage", "coarse", "--out", str(out)]) == 1  # of which nothing is kept
    with pytest.raises(SystemExit):
        main(["--stage", "teacher"])
    assert "name another file with --out" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
