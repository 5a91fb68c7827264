"""`python -m benchmarks.cascade` on a few images. No time is checked, only what it finds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks import cascade
from server.engine.execution.runner import Runner
from tome_core.schedule import Schedule


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(split: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (24, 28, 28), np.uint8)
        return images, random.integers(0, 10, 24).astype(np.uint8)

    monkeypatch.setattr(cascade, "load_fashion_mnist", load)


ARGUMENTS = ["--r", "16", "--found-on", "12", "--turns", "1", "--timed", "8", "--threads", "1"]


class MadeUpRunner:
    """A model of two classes that takes an image of one pixel for class 0, unless it merges.

    The pixel says in hundredths by how much the probability of class 0 is above that of class 1
    then, and from 100 on that of class 1 above that of class 0.
    """

    def logits(self, pixels: npt.NDArray[np.uint8], schedules: Sequence[Schedule]) -> torch.Tensor:
        value = torch.from_numpy(pixels).flatten().double()
        margin = torch.where(value < 100, value, 100 - value) / 100
        if schedules[0] == cascade.EXACT:
            margin = torch.full_like(margin, 0.99)
        return torch.stack([1 + margin, 1 - margin], dim=1).div(2).log()


def test_a_margin_is_found_on_some_images_and_measured_on_the_others() -> None:
    """Of the first three, one differs by 0.3. Of the others so does one by 0.2, and one by 0.5."""
    inputs = np.array([90, 130, 60, 95, 120, 150, 25, 80], np.uint8).reshape(-1, 1, 1, 1)
    labels = np.array([0, 0, 0, 0, 0, 0, 0, 1], np.uint8)
    args = cascade.parse(["--found-on", "3", "--turns", "1", "--timed", "2", "--batch", "4"])
    runner = cast("Runner", MadeUpRunner())
    exact = cascade.run(runner, inputs, cascade.EXACT, args.batch)
    found = cascade.measure(runner, inputs, labels, exact, Schedule.constant(16), args)
    assert found.margin.margin == pytest.approx(0.3)
    assert found.second_passes == pytest.approx(2 / 5)  # of margins 0.2 and 0.25
    assert (found.plain_agreement, found.agreement) == pytest.approx((3 / 5, 4 / 5))
    assert (found.exact_accuracy, found.accuracy) == pytest.approx((4 / 5, 3 / 5))
    assert found.time >= found.plain_time > 0


@pytest.mark.usefixtures("few_images")
def test_a_table_has_a_row_for_each_r(capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main([*ARGUMENTS, "--seconds", "0"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"(?m)^ *16 +[\d.]+% +[\d.]+ +[\d.]+% +[\d.]+%", output)
    assert "images/s" not in output


@pytest.mark.slow
@pytest.mark.usefixtures("few_images")
def test_a_server_takes_the_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert cascade.main([*ARGUMENTS, "--seconds", "0.5", "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    assert "round 1, r=0:" in output
    assert "confidence=" in output
