"""The stages of a run: how long they take, at which learning rate, and by which recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from training import stages
from training.stages import Done, Stage, learning_rate

BY_STEPS = Stage("merged", (0,), steps=2)
BY_TIME = Stage("merged", (0,), seconds=240)


def test_stages_by_time_end_in_time() -> None:
    assert Done(steps=10, seconds=120).share_of(BY_TIME) == 0.5
    assert Done(steps=10, seconds=480).share_of(BY_TIME) == 1
    assert Done(steps=1).share_of(BY_STEPS) == 0.5


def test_the_learning_rate_warms_up_and_falls_to_its_end() -> None:
    rates = [learning_rate(BY_STEPS, share / 100) for share in range(101)]
    assert max(rates) == pytest.approx(BY_STEPS.lr[0])
    assert rates.index(max(rates)) == 5
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(BY_STEPS.lr[1])


@pytest.mark.parametrize(("device", "recipe"), [("cuda", "gpu"), ("cpu", "cpu")])
def test_the_recipe_follows_the_device(
    device: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "default_device", lambda: device)
    parser = argparse.ArgumentParser()
    stages.add_options(parser, Path("run"), ["merged"], "")
    assert parser.parse_args([]).recipe == recipe
    assert parser.parse_args(["--device", "cpu", "--recipe", "gpu"]).recipe == "gpu"
