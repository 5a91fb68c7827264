"""The dtype that ``auto`` picks on a CPU: the faster one, unless the self check rejects it.

No test depends on which one is faster here: the result of the timing is forced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tome_core
from server.engine.device import dtype_choice, placement
from server.engine.device.dtype_choice import DtypeChoice, choose_dtype, keep_first_block
from server.engine.device.self_check import REFERENCE
from server.engine.loading import model_loader
from server.engine.startup import start_models
from server.ipc.messages import ModelInfo
from tests.server.engine.device.plain_network import load_plain
from tests.server.engine.device.test_self_check import (
    messages,
    optimize_to_raise,
    optimize_wrongly,
)
from tests.server.supervision.engines import configuration
from tests.tome_core.models import make_images, make_vit
from tests.tome_core.test_eva import MODELS as EVAS
from tests.tome_core.test_eva import make_eva
from tests.tome_core.test_relative import BEITS, RELPOS
from tests.tome_core.test_relative import make as make_relative

DTYPES = (torch.float32, torch.bfloat16)
SHAPE = (3, 32, 32)
LEVELS = (0, 4, 8)
RELATIVES = [*BEITS, *RELPOS]
Force = Callable[[float, float], None]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """Sets the seconds of float32 and bfloat16; this processor supports both."""

    def set_seconds(*seconds: float) -> None:
        times = dict(zip(DTYPES, seconds, strict=True))
        monkeypatch.setattr(dtype_choice, "time_dtypes", lambda *_: times)

    for module in (placement, model_loader):
        monkeypatch.setattr(module, "cpu_dtypes", lambda: DTYPES)
    return set_seconds


def start(folder: Path, dtype: str = "auto") -> ModelInfo:
    _, (info,) = start_models(configuration(folder, levels=LEVELS, dtype=dtype))
    return info


@pytest.mark.parametrize(
    ("seconds", "dtype", "speedup"),
    [((0.004, 0.002), "bfloat16", 2.0), ((0.002, 0.003), "float32", 1.5)],
)
def test_the_faster_dtype_serves(
    tiny_folder: Path,
    force: Force,
    caplog: pytest.LogCaptureFixture,
    seconds: tuple[float, float],
    dtype: str,
    speedup: float,
) -> None:
    force(*seconds)
    with caplog.at_level(logging.INFO, "tome.engine"):
        info = start(tiny_folder)
    assert info.dtype == dtype
    assert info.dtype_speedup == pytest.approx(speedup)
    assert f"tiny: {dtype} is {speedup:.2f} times as fast here as " in caplog.text
    assert f"tiny is ready on cpu in {dtype}" in caplog.text


def test_a_dtype_that_is_set_is_not_timed(tiny_folder: Path, force: Force) -> None:
    force(0.004, 0.002)
    info = start(tiny_folder, "float32")
    assert info.dtype == "float32"
    assert info.dtype_speedup is None


def test_float32_serves_if_the_self_check_rejects_bfloat16(
    tiny_folder: Path,
    force: Force,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimize = tome_core.optimize

    def raise_in_bfloat16(model: Any, dtype: torch.dtype, **options: Any) -> tome_core.MergedViT:
        if dtype == torch.bfloat16:
            return optimize_to_raise(model, dtype)
        return optimize(model, dtype, **options)

    monkeypatch.setattr(tome_core, "optimize", raise_in_bfloat16)
    force(0.004, 0.002)
    with caplog.at_level(logging.WARNING, "tome.engine"):
        info = start(tiny_folder)
    assert info.dtype == "float32"
    assert info.dtype_speedup == pytest.approx(0.5)
    assert info.acceleration != REFERENCE
    rejection, consequence = messages(caplog)
    assert rejection.startswith("tiny: the self check rejects the optimised network")
    assert consequence == "tiny: float32 serves instead of the plain network in bfloat16"


def test_a_rejected_network_in_float32_is_not_replaced_by_bfloat16(
    tiny_folder: Path,
    force: Force,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tome_core, "optimize", optimize_wrongly)
    force(0.002, 0.004)
    info = start(tiny_folder)
    assert (info.dtype, info.acceleration) == ("float32", REFERENCE)


FAMILIES = [
    partial(make_vit, embed_dim=32, init_values=0.3),
    partial(make_vit, embed_dim=32, depth=0),
    *(partial(make_eva, name) for name in EVAS),
    *(partial(make_relative, name) for name in RELATIVES),
]


@pytest.mark.parametrize("make", FAMILIES)
def test_every_dtype_is_timed_on_the_first_block(
    make: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dtype_choice, "BUDGET_SECONDS", 0)  # one turn
    plain = tome_core.patch(make().float().eval())
    network: Any = plain.adapter.network
    size = network.patch_embed.img_size
    images = make_images(2, size, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(images, r=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seconds = dtype_choice.time_dtypes(plain, DTYPES, (3, *size), r=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert set(seconds) == set(DTYPES)
    assert min(seconds.values()) > 0
    with torch.no_grad():
        assert torch.equal(plain(images, r=2), expected)


def test_the_first_block_shares_its_weights(tiny_folder: Path) -> None:
    plain = load_plain(tiny_folder)
    plain.merging = plain.merging.with_rule("pairs")
    depth = len(plain.adapter.blocks)
    short = keep_first_block(plain)
    assert short.merging == plain.merging
    assert len(short.adapter.blocks) == 1 < depth == len(plain.adapter.blocks)
    originals = plain.state_dict()
    for name, weight in short.state_dict().items():
        assert weight.data_ptr() == originals[name].data_ptr()


def test_a_dtype_that_cannot_run_is_not_chosen(
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimize = tome_core.optimize

    def fail_in_bfloat16(model: Any, dtype: torch.dtype) -> tome_core.MergedViT:
        if dtype == torch.bfloat16:
            raise RuntimeError("no such primitive")
        return optimize(model, dtype)

    def fail(model: Any, dtype: torch.dtype) -> tome_core.MergedViT:
        raise RuntimeError("no such primitive")

    plain = load_plain(tiny_folder)
    monkeypatch.setattr(tome_core, "optimize", fail_in_bfloat16)
    with caplog.at_level(logging.WARNING, "tome.engine"):
        assert choose_dtype(plain, DTYPES, SHAPE, LEVELS, "tiny") == DtypeChoice(torch.float32)
    expected = "bfloat16 cannot be timed: it raised RuntimeError: no such primitive"
    assert messages(caplog) == [expected]
    monkeypatch.setattr(tome_core, "optimize", fail)
    assert choose_dtype(plain, DTYPES, SHAPE, LEVELS, "tiny") == DtypeChoice(torch.float32)
