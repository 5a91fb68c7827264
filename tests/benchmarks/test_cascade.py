"""`python -m benchmarks.cascade` on a few images. No time is checked, only what it finds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks import cascade


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (24, 28, 28), np.uint8)
        return images, random.integers(0, 10, 24).astype(np.uint8)

    monkeypatch.setattr(cascade, "load_fashion_mnist", load)


ARGUMENTS = ["--r", "16", "--found-on", "12", "--turns", "1", "--timed", "8", "--threads", "1"]


@pytest.mark.usefixtures("few_images")
def test_a_margin_is_found_on_some_images_and_measured_on_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cascade.main([*ARGUMENTS, "--seconds", "0"]) == 0
    output = capsys.readouterr().out
    assert "of the time at r=0" in output
    assert "images/s" not in output


@pytest.mark.slow
@pytest.mark.usefixtures("few_images")
def test_a_server_takes_the_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main([*ARGUMENTS, "--seconds", "0.5", "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    assert "round 1, r=0:" in output
    assert "confidence=" in output
