"""Recorded forward passes give what the operators do that they recorded, for every level and number
of images.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import tome_core
from server.engine.device import self_check
from server.engine.device.forward import Forward
from tests.cuda.networks import LEVELS, POSITIONS, SMALL, network, side
from tome_core.schedule import Schedule

pytestmark = pytest.mark.cuda

MAX_BATCH = 6
COUNTS = (1, 2, 3, 5, 6)  # of images, some of which are filled up to a bucket
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def pixels(name: str, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        0, 256, (count, 3, side(name), side(name)), np.uint8
    )


def both(name: str, dtype: torch.dtype, gpu: torch.device) -> tuple[Forward, Forward]:
    """With graphs, and without, of the same network."""
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    with_graphs, without = (Forward(fast, MEAN, STD, gpu) for _ in range(2))
    assert with_graphs.record(LEVELS, MAX_BATCH, (3, side(name), side(name))) == ""
    return with_graphs, without


def check(
    name: str, dtype: torch.dtype, gpu: torch.device, batches: Sequence[Sequence[Schedule]]
) -> None:
    """All batches by graphs, to the limits of the self check, beside the operators.

    A graph may multiply other numbers of rows, and so round otherwise. The operators do too in
    batches twice as large.
    """
    with_graphs, without = both(name, dtype, gpu)
    found = []
    noise = []
    for seed, schedules in enumerate(batches):
        images = pixels(name, len(schedules), seed)
        count = len(schedules)
        expected = without(images, schedules).logits
        again = without(np.concatenate([images] * 2), [*schedules] * 2).logits[:count]
        found += self_check.errors([with_graphs(images, schedules).logits], [expected])
        noise += self_check.errors([again], [expected])
    assert self_check.judge(found, noise, torch.finfo(dtype).eps) == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["class-token", "distilled", "like-dinov2", "no-prefix", "vit-s"])
def test_replay_is_eager(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    levels = [Schedule.constant(level) for level in LEVELS]
    check(name, dtype, gpu, [[level] * count for level in levels for count in COUNTS])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["class-token", "distilled", "vit-s"])
def test_mixed_batches(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    """Of levels that are recorded, and of other schedules, in every number of images, one after
    another.
    """
    source = random.Random(0)
    others = [Schedule.constant(3), Schedule.linear(12, -1), Schedule.per_layer([0, 20])]
    choices = [*(Schedule.constant(level) for level in LEVELS), *others]
    check(
        name, dtype, gpu, [source.choices(choices, k=count) for _ in range(6) for count in COUNTS]
    )


def test_mixed_batches_run_by_graphs(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    with_graphs, _ = both("class-token", torch.bfloat16, gpu)
    assert with_graphs.recorded[2]
    monkeypatch.setattr(with_graphs.network, "outputs", None)  # what operators would run
    schedules = [Schedule.constant(r) for r in (0, 16, 3, 8)]
    assert with_graphs(pixels("class-token", 4, 0), schedules).logits.isfinite().all()
    assert not both("no-prefix", torch.bfloat16, gpu)[0].recorded[2]


@pytest.mark.parametrize("name", [*SMALL, *POSITIONS])
def test_all_kinds_can_be_recorded(name: str, gpu: torch.device) -> None:
    both(name, torch.bfloat16, gpu)


def test_one_replay_after_another(gpu: torch.device) -> None:
    """What a replay gave is the caller's own, and padding of an earlier batch reaches no later one."""
    with_graphs, without = both("class-token", torch.float32, gpu)
    schedules = [Schedule.constant(8)] * 3
    first = with_graphs(pixels("class-token", 3, 1), schedules).logits
    kept = first.clone()
    with_graphs(pixels("class-token", 6, 2), [Schedule.constant(8)] * 6)
    assert torch.equal(first, kept)
    second = with_graphs(pixels("class-token", 3, 1), schedules).logits
    expected = without(pixels("class-token", 3, 1), schedules).logits
    for got in (first, second):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
