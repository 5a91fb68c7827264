"""A replay gives what the recorded operators give, for every level and number of images."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import tome_core
from server.engine.device.forward import Forward
from server.engine.device.tolerance import judge, relative_errors
from tests.cuda.networks import LEVELS, POSITIONS, SMALL, SOUND, VIDEO, image_shape, network
from tome_core.schedule import Schedule

pytestmark = pytest.mark.cuda

MAX_BATCH = 6
COUNTS = (1, 2, 3, 5, 6)  # of images; some are padded to a bucket
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
LEVEL_SCHEDULES = [Schedule.constant(level) for level in LEVELS]
OTHER_SCHEDULES = [
    Schedule.constant(3),
    Schedule.linear(12, -1),
    Schedule.per_layer([0, 20]),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_pixels(name: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if name in SOUND:
        return rng.standard_normal((count, *image_shape(name)), np.float32)
    return rng.integers(0, 256, (count, *image_shape(name)), np.uint8)


def with_and_without_graphs(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> tuple[Forward, Forward]:
    """Return two forward passes of the same network."""
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    input_dtype = torch.float32 if name in SOUND else torch.uint8
    with_graphs = Forward(fast, MEAN, STD, gpu, input_dtype=input_dtype)
    assert with_graphs.record(LEVELS, MAX_BATCH, image_shape(name)) == ""
    without_graphs = Forward(fast, MEAN, STD, gpu, input_dtype=input_dtype)
    return with_graphs, without_graphs


def assert_replays_match(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
    batches: Sequence[Sequence[Schedule]],
) -> None:
    """Compare graphs with operators, with the tolerance of the self check.

    A graph multiplies matrices of other dimensions, and so may round differently. The operators do
    so too in batches of twice the size.
    """
    with_graphs, without_graphs = with_and_without_graphs(name, dtype, gpu)
    errors: list[float] = []
    rounding_errors: list[float] = []
    for seed, schedules in enumerate(batches):
        count = len(schedules)
        pixels = random_pixels(name, count, seed)
        reference = without_graphs(pixels, schedules).logits
        doubled_pixels = np.concatenate([pixels, pixels])
        doubled = without_graphs(doubled_pixels, [*schedules] * 2).logits[:count]
        replayed = with_graphs(pixels, schedules).logits
        errors += relative_errors([replayed], [reference])
        rounding_errors += relative_errors([doubled], [reference])
    assert judge(errors, rounding_errors, torch.finfo(dtype).eps) == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name", ["class-token", "distilled", "like-dinov2", "no-prefix", "spectrogram", "vit-s"]
)
def test_a_replay_of_one_level_matches_the_operators(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    batches = [[level] * count for level in LEVEL_SCHEDULES for count in COUNTS]
    assert_replays_match(name, dtype, gpu, batches)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["class-token", "distilled", "spectrogram", "vit-s"])
def test_a_replay_of_mixed_schedules_matches_the_operators(
    name: str,
    dtype: torch.dtype,
    gpu: torch.device,
) -> None:
    """Some of the schedules are not recorded."""
    rng = random.Random(0)
    choices = [*LEVEL_SCHEDULES, *OTHER_SCHEDULES]
    batches = []
    for _ in range(6):
        for count in COUNTS:
            batches.append(rng.choices(choices, k=count))
    assert_replays_match(name, dtype, gpu, batches)


def test_a_mixed_batch_runs_by_a_graph_alone(
    gpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_graphs, _ = with_and_without_graphs("class-token", torch.bfloat16, gpu)
    assert with_graphs.recorded.any_mix
    monkeypatch.setattr(with_graphs.network, "outputs", None)  # what would run the operators
    schedules = [Schedule.constant(r) for r in (0, 16, 3, 8)]
    outputs = with_graphs(random_pixels("class-token", 4, seed=0), schedules)
    assert outputs.logits.isfinite().all()


def test_a_network_that_pools_all_tokens_has_no_graphs_for_mixed_batches(
    gpu: torch.device,
) -> None:
    with_graphs, _ = with_and_without_graphs("no-prefix", torch.bfloat16, gpu)
    assert not with_graphs.recorded.any_mix


@pytest.mark.parametrize("name", [*SMALL, *POSITIONS, *SOUND, *VIDEO])
def test_every_network_can_be_recorded(
    name: str,
    gpu: torch.device,
) -> None:
    with_and_without_graphs(name, torch.bfloat16, gpu)


def test_replays_do_not_affect_each_other(gpu: torch.device) -> None:
    """The caller keeps its outputs, and a later batch does not read pixels of an earlier one."""
    with_graphs, without_graphs = with_and_without_graphs("class-token", torch.float32, gpu)
    level = Schedule.constant(8)
    pixels = random_pixels("class-token", 3, seed=1)
    first = with_graphs(pixels, [level] * 3).logits
    copy = first.clone()
    with_graphs(random_pixels("class-token", 6, seed=2), [level] * 6)
    assert torch.equal(first, copy)
    second = with_graphs(pixels, [level] * 3).logits
    expected = without_graphs(pixels, [level] * 3).logits
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-4)
