"""Accelerations that are right, slightly wrong, or fail: what serves in the end, and who is told."""

import copy
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tome_core
from server.catalog.entries import read_catalog
from server.engine.device import self_check
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, create, load_weights
from server.engine.startup import start_models
from server.errors import UnsafeAcceleration
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Accelerations
from tests.server.engine_client.pools import configuration
from tome_core.ragged.packed import Packed
from tome_core.schedule import Schedule

CPU = torch.device("cpu")
errors = st.lists(st.floats(0, 10), min_size=1, max_size=20)


@given(errors, st.floats(0, 1))
def test_rounding_alone_is_never_wrong(noise: list[float], resolution: float) -> None:
    assert self_check.judge(noise, noise, resolution) == ""
    assert self_check.judge([0.0] * len(noise), noise, resolution) == ""


@given(errors)
def test_nothing_explains_nan_or_errors_beyond_the_limits(noise: list[float]) -> None:
    far = self_check.FACTOR * max(noise) + self_check.WORST
    assert "at worst" in self_check.judge([*noise, *noise, far + 0.01], noise, 1e-7)
    assert "typically" in self_check.judge([far] * 3, noise, 1e-7)
    assert self_check.judge([math.inf], noise, 1e-7)


def test_errors_are_shares_of_each_image() -> None:
    exact = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    got = torch.tensor([[3.0, 4.5], [0.0, 2.0], [float("nan"), 0.0]])
    assert self_check.errors([got[:2], got[2:]], [exact[:2], exact[2:]]) == [
        pytest.approx(0.1),
        0.0,
        math.inf,
    ]
    with pytest.raises(ValueError, match="shape"):
        self_check.errors([got[:, :1]], [exact])


@pytest.mark.parametrize("levels", [(), (0,), (0, 4), (0, 4, 8, 12, 16)])
def test_all_levels_run_alone_and_in_one_batch(levels: tuple[int, ...]) -> None:
    mixed, *alone = self_check.make_cases((3, 8, 8), levels, torch.device("cpu"))
    wanted = {Schedule.constant(r) for r in {0, *levels}}
    assert set(mixed.schedules) == {case.schedules[0] for case in alone} == wanted
    for case in (mixed, *alone):
        assert case.images.shape == (len(case.schedules), 3, 8, 8)
        assert len(case.schedules) >= 2


class NoSizes(tome_core.MergedViT):
    """Wrong in a way that is easily overlooked: all merged tokens count as one patch in attention."""

    def __init__(self, model: tome_core.MergedViT) -> None:
        super().__init__(model.adapter, replace(model.merging, prop_attn=False))


class Raising:
    """A strategy that cannot attend."""

    def attend(self, *_: object) -> Packed:
        raise RuntimeError("no kernel image is available for execution on the device\nmore lines")

    merge = attend


def wrong(model: tome_core.MergedViT, dtype: torch.dtype, **_: bool) -> tome_core.MergedViT:
    return NoSizes(copy.deepcopy(model).to(dtype))


def raising(model: tome_core.MergedViT, dtype: torch.dtype, **_: bool) -> tome_core.MergedViT:
    fast = copy.deepcopy(model).to(dtype)
    fast.merging = replace(fast.merging, strategy=Raising())  # type: ignore[arg-type]
    return fast


def impossible(model: tome_core.MergedViT, dtype: torch.dtype, **_: bool) -> tome_core.MergedViT:
    raise OSError("cannot be built")


def plain(folder: Path) -> tome_core.MergedViT:
    (spec,) = read_catalog(folder / "models.toml", ())
    vit = create(spec, 3, pretrained=False)
    assert spec.checkpoint is not None
    load_weights(vit, spec.checkpoint)
    return tome_core.patch(vit.eval())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_right_serves(
    tiny_folder: Path, dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    proven = self_check.accelerate(
        plain(tiny_folder), getattr(torch, dtype), (3, 32, 32), (0, 4, 8), "tiny"
    )
    assert proven.kind in ("kernels", "operators")
    assert {parameter.dtype for parameter in proven.network.parameters()} == {getattr(torch, dtype)}
    assert not caplog.records


@pytest.mark.parametrize(
    ("optimize", "reason"),
    [
        (wrong, "typically differs by 0"),
        (raising, "raised RuntimeError: no kernel image is available for execution on the device"),
        (impossible, "raised OSError: cannot be built"),
    ],
)
def test_an_engine_starts_with_the_plain_network_where_the_fast_one_fails(
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
    (record,) = caplog.records
    assert (
        record.getMessage().startswith("tiny: the optimised network is not used")
        and reason in record.getMessage()
    )
    assert "more lines" not in record.getMessage()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), np.uint8)
    schedules = [Schedule.constant(r) for r in (0, 8, 3)]
    images = (torch.from_numpy(pixels) / 255 - 0.5) / 0.25
    with torch.inference_mode():
        expected = plain(tiny_folder)(images, r=schedules)
    logits = served["tiny"].runner.logits(pixels, schedules)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_the_engine_says_what_makes_it_fast(tiny: LoadedModel) -> None:
    assert (
        Runner(tiny, torch.device("cpu")).acceleration
        == tiny.acceleration
        in ("kernels", "operators")
    )


def test_what_takes_the_device_down_needs_a_new_process(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tome_core, "optimize", raising)
    monkeypatch.setattr(self_check, "is_lost", lambda device: True)
    with pytest.raises(
        UnsafeAcceleration, match="tiny: the optimised network raised RuntimeError: no kernel"
    ) as found:
        self_check.accelerate(plain(tiny_folder), torch.float32, (3, 32, 32), (0, 4), "tiny")
    assert found.value.safer == Accelerations(optimised=False)


def test_the_path_of_one_level_is_proven_even_without_time(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "BUDGET_SECONDS", -1.0)
    cases, _ = self_check.run_within_budget(
        plain(tiny_folder), self_check.make_cases((3, 32, 32), (0, 4), CPU)
    )
    assert [len(set(case.schedules)) for case in cases] == [2, 1]
    assert cases[1].schedules[0] == Schedule.constant(4)
