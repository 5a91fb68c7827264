"""Self check: which network serves if an acceleration is right, slightly wrong, or raises."""

import copy
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tome_core
from server.engine.device import self_check
from server.engine.device.self_check import CheckBatch, SelfCheck
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel
from server.engine.startup import start_models
from server.errors import UnsafeAcceleration
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations
from tests.server.engine.device.plain_network import load_plain
from tests.server.supervision.engines import configuration
from tome_core.execution import Execution
from tome_core.ragged.packed import Packed
from tome_core.schedule import Schedule

CPU = torch.device("cpu")
IMAGE_SHAPE = (3, 32, 32)


@pytest.mark.parametrize("levels", [(), (0,), (0, 4), (0, 4, 8, 12, 16)])
def test_each_level_has_a_batch_and_all_share_one(levels: tuple[int, ...]) -> None:
    image_shape = (3, 8, 8)
    mixed, *uniform = self_check.make_batches(image_shape, levels, CPU)
    expected = {Schedule.constant(r) for r in {0, *levels}}
    assert set(mixed.schedules) == expected
    assert {batch.schedules[0] for batch in uniform} == expected
    for batch in (mixed, *uniform):
        assert batch.images.shape == (len(batch.schedules), *image_shape)
        assert len(batch.schedules) >= 2


class WithoutSizes(tome_core.MergedViT):
    """A subtle mistake: attention counts each merged token as one patch."""

    def __init__(self, model: tome_core.MergedViT) -> None:
        merging = replace(model.merging, prop_attn=False)
        super().__init__(model.adapter, merging, model.execution)


class RaisingStrategy:
    """A strategy that cannot attend."""

    def attend(self, *_: object) -> Packed:
        raise RuntimeError("no kernel image is available for execution on the device\nmore lines")

    merge = attend


def optimize_wrongly(
    model: tome_core.MergedViT,
    dtype: torch.dtype,
    **_: bool,
) -> tome_core.MergedViT:
    return WithoutSizes(copy.deepcopy(model).to(dtype))


def optimize_to_raise(
    model: tome_core.MergedViT,
    dtype: torch.dtype,
    **_: bool,
) -> tome_core.MergedViT:
    candidate = copy.deepcopy(model).to(dtype)
    strategy = RaisingStrategy()
    candidate.execution = Execution(strategy)  # type: ignore[arg-type]
    return candidate


def fail_to_optimize(
    model: tome_core.MergedViT,
    dtype: torch.dtype,
    **_: bool,
) -> tome_core.MergedViT:
    raise OSError("cannot be built")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the engine has logged; other loggers may warn of kernels that are not compiled."""
    return [record.getMessage() for record in caplog.records if record.name == "tome.engine"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_optimised_network_that_passes_serves(
    tiny_folder: Path,
    dtype: torch.dtype,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = load_plain(tiny_folder)
    checked = self_check.accelerate(plain, dtype, IMAGE_SHAPE, (0, 4, 8), "tiny")
    assert checked.acceleration in ("kernels", "operators")
    assert {parameter.dtype for parameter in checked.network.parameters()} == {dtype}
    assert not messages(caplog)


@pytest.mark.parametrize(
    ("optimize", "reason"),
    [
        (optimize_wrongly, "of the logits for the median image"),
        (
            optimize_to_raise,
            "raised RuntimeError: no kernel image is available for execution on the device",
        ),
        (fail_to_optimize, "raised OSError: cannot be built"),
    ],
)
def test_an_engine_falls_back_to_the_plain_network(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    optimize: object,
    reason: str,
) -> None:
    monkeypatch.setattr(tome_core, "optimize", optimize)
    config: EngineConfig = configuration(tiny_folder, levels=(0, 4, 8))
    with caplog.at_level(logging.WARNING, "tome.engine"):
        served, (info,) = start_models(config)
    assert info.acceleration == self_check.REFERENCE

    (message,) = messages(caplog)
    assert message.startswith("tiny: the self check rejects the optimised network")
    assert reason in message
    assert "more lines" not in message

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *IMAGE_SHAPE), np.uint8)
    schedules = [Schedule.constant(r) for r in (0, 8, 3)]
    images = (torch.from_numpy(pixels) / 255 - 0.5) / 0.25
    expected = self_check.compute_logits(
        load_plain(tiny_folder),
        CheckBatch(images, tuple(schedules)),
    )
    logits = served["tiny"].runner.logits(pixels, schedules)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_rounding_that_only_a_later_batch_shows_is_no_fault(tiny_folder: Path) -> None:
    plain = load_plain(tiny_folder)
    batches = self_check.make_batches(IMAGE_SHAPE, (0, 4, 8), CPU)
    expected = [self_check.compute_logits(plain, batch) for batch in batches]
    # As if rounding had changed merges of the last batch, and none of the others.
    expected[-1] = expected[-1].flip(0)
    fallback = self_check.copy_with_dtype(plain, torch.bfloat16)
    check = SelfCheck(batches, expected, fallback)
    assert check.run(copy.deepcopy(fallback)) == ""
    assert "of the logits" in check.run(WithoutSizes(fallback))
    in_float32 = SelfCheck(batches, expected, plain)
    assert "for the worst image" in in_float32.run(copy.deepcopy(plain))


def test_the_runner_reports_the_acceleration(tiny: LoadedModel) -> None:
    assert tiny.acceleration in ("kernels", "operators")
    assert Runner(tiny, CPU).acceleration == tiny.acceleration


def test_an_acceleration_that_loses_the_device_needs_a_new_process(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def is_lost(device: torch.device) -> bool:
        return True

    monkeypatch.setattr(tome_core, "optimize", optimize_to_raise)
    monkeypatch.setattr(self_check, "is_lost", is_lost)
    message = "tiny: the optimised network raised RuntimeError: no kernel"
    plain = load_plain(tiny_folder)
    with pytest.raises(UnsafeAcceleration, match=message) as caught:
        self_check.accelerate(plain, torch.float32, IMAGE_SHAPE, (0, 4), "tiny")
    assert caught.value.safer == Accelerations(optimised=False)


def test_a_uniform_batch_is_checked_even_without_time(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(self_check, "BUDGET_SECONDS", -1.0)
    batches = self_check.make_batches(IMAGE_SHAPE, (0, 4), CPU)
    finished, _ = self_check.run_within_budget(load_plain(tiny_folder), batches)
    mixed, uniform = finished
    assert len(set(mixed.schedules)) == 2
    assert set(uniform.schedules) == {Schedule.constant(4)}


@pytest.mark.parametrize("levels", [(0,), (0, 4, 8)])
def test_a_slow_network_is_checked_with_fewer_images(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    levels: tuple[int, ...],
) -> None:
    monkeypatch.setattr(self_check, "REQUIRED_SECONDS", 0.0)
    batches = self_check.make_batches(IMAGE_SHAPE, levels, CPU)
    finished, logits = self_check.run_within_budget(load_plain(tiny_folder), batches)
    mixed, uniform = finished
    extremes = {levels[0], levels[-1]}
    assert set(mixed.schedules) == {Schedule.constant(r) for r in extremes}
    assert uniform.schedules == (Schedule.constant(levels[-1]),)
    assert [len(batch) for batch in logits] == [len(extremes), 1]
    for batch in finished:
        assert len(batch.images) == len(batch.schedules)
        assert torch.equal(batch.images[0], batches[0].images[0])


def test_a_slow_network_runs_no_image_twice(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REQUIRED_SECONDS", "LOADING_SECONDS"):
        monkeypatch.setattr(self_check, name, 0.0)
    sizes: list[int] = []
    compute_logits = self_check.compute_logits

    def counted(network: tome_core.MergedViT, batch: self_check.CheckBatch) -> torch.Tensor:
        sizes.append(len(batch.schedules))
        return compute_logits(network, batch)

    monkeypatch.setattr(self_check, "compute_logits", counted)
    batches = self_check.make_batches(IMAGE_SHAPE, (0, 4, 8), CPU)
    _, logits = self_check.run_within_budget(load_plain(tiny_folder), batches)
    assert sizes == [1, 2]
    assert [len(batch) for batch in logits] == [2, 1]


def test_a_copy_in_another_dtype_has_rounded_weights(tiny_folder: Path) -> None:
    plain = load_plain(tiny_folder)
    copied = self_check.copy_with_dtype(plain, torch.bfloat16)
    originals = plain.state_dict()
    for name, converted in copied.state_dict().items():
        assert converted.dtype == torch.bfloat16
        assert torch.equal(converted, originals[name].to(torch.bfloat16))


def test_a_copy_in_the_same_dtype_shares_no_memory(tiny_folder: Path) -> None:
    plain = load_plain(tiny_folder)
    copied = self_check.copy_with_dtype(plain, torch.float32)
    originals = plain.state_dict()
    for name, converted in copied.state_dict().items():
        assert converted.data_ptr() != originals[name].data_ptr()
