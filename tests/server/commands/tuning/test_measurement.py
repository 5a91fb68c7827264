"""The warm-up, and that all rules are measured on the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server.commands.tuning import measurement
from server.commands.tuning.measurement import check_same_pictures, measure_rule
from server.commands.tuning.pictures import Pictures
from server.commands.tuning.state import RuleRecord
from server.errors import ConfigError
from tome_core.schedule import Schedule


def record(sizes: list[int], *unreadable: str) -> RuleRecord:
    return RuleRecord({}, batch_sizes=sizes, unreadable=dict.fromkeys(unreadable, "broken"))


def test_the_same_pictures_pass() -> None:
    check_same_pictures([], "folder")
    check_same_pictures([record([2, 1], "a.png"), record([2, 1], "a.png")], "folder")


def test_pictures_that_change_meanwhile_are_an_error() -> None:
    with pytest.raises(ConfigError, match="changed meanwhile; measure again with --fresh"):
        check_same_pictures([record([2, 1], "a.png"), record([2], "a.png", "b.png")], "folder")


def test_a_folder_without_a_readable_picture_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no picture in folder can be read; of a.png: broken"):
        check_same_pictures([record([], "a.png")], "folder")


class CountingRunner:
    """Notes the size of each batch that warms it up, and its r."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(transform=None)
        self.batches: list[tuple[int, int]] = []

    def seconds(self, schedules: Sequence[Schedule]) -> float:
        self.batches.append((len(schedules), schedules[0].counts[0]))
        return 0.0


@pytest.mark.parametrize(("read", "images"), [(0, 4), (7, 3)])
def test_each_level_is_warmed_up_with_a_batch_as_large_as_those_that_are_timed(
    read: int, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = CountingRunner()
    baseline: Any = CountingRunner()
    monkeypatch.setattr(measurement, "picture_batches", lambda *arguments: iter(()))
    names = [str(number) for number in range(10)]
    pictures = Pictures("folder", names, np.zeros((10, 1, 1), np.uint8), [Path("file")])
    schedules = [Schedule.constant(r) for r in (0, 8)]
    left = RuleRecord({}, read=read)
    measure_rule(runner, baseline, schedules, pictures, left, 4, recorded=lambda: None)
    assert runner.batches == [(images, 0), (images, 8)]
    assert baseline.batches == [(images, 0)]
