"""`min_fidelity` is kept on pictures that were not measured: a tiny model on pictures of noise."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import fidelity
from tests.server.engine.tiny import write_tiny

PICTURES = 240


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Noise of all strengths on plain grey: some change much by merging, and some hardly."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(PICTURES):
        strength = generator.integers(1, 128)
        pixels = 128 + generator.integers(-strength, strength, (32, 32, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.usefixtures("restored_logging")
def test_other_pictures_keep_what_the_profile_shows(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOME_THREADS", "1")
    monkeypatch.setenv("TOME_DTYPE", "float32")
    config = str(write_tiny(tmp_path))
    arguments = ["--data", str(pictures), "--config", config, "--r", "3 4 6 8"]
    # Close to the means of these levels, so that every draw is a close decision.
    arguments += ["--bounds", "0.9996", "0.9997", "0.9998", "0.9999"]
    assert fidelity.main([*arguments, "--pictures", "60", "--draws", "200"]) == 0
    output = capsys.readouterr().out
    assert "200 draws of 60 of 240 pictures of pictures" in output
    intervals = re.findall(r"(?m)^\| (\d+) \| 0\.\d+ \| ([\d.]+) \|$", output)
    assert [r for r, _ in intervals] == ["3", "4", "6", "8"]
    # The mean of the other pictures is not the true one, and errs as well.
    assert all(float(holds) >= 85 for _, holds in intervals)
    bounds = re.findall(r"(?m)^\| (0\.\d+) \| [\d.]+ \| ([\d.]+) \| ([+-][\d.]+) \|$", output)
    assert bounds
    for _, kept, margin in bounds:
        assert float(kept) >= 90
        assert float(margin) > -0.0001


def test_a_bound_counts_what_a_profile_shows_for_certain() -> None:
    cosines = np.tile([0.94, 0.96], 100)[:, None]
    found = fidelity.draw_profiles(cosines, 100, 20, 0)
    by_bound = {bound.least: bound for bound in found.bounds}
    # All profiles allow 0.9, and hardly one 0.95, which is the mean.
    assert (by_bound[0.9].allowed, by_bound[0.9].kept) == (20, 20)
    assert by_bound[0.95].allowed <= 2
    assert by_bound[0.97].allowed == 0
    assert found.holding.mean() >= 0.8
