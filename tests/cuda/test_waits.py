"""A forward pass never makes the host wait for the device, so that launches run ahead of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import tome_core
from tests.cuda.networks import MIXED, images, network

pytestmark = pytest.mark.cuda

BFLOAT16_NETWORKS = ("class-token", "registers", "attention-pool", "rotary", "relative")
FLOAT32_NETWORKS = ("class-token", "rotary", "relative")


@contextmanager
def waits_raise() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("r", [0, 16, list(MIXED)], ids=str)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.bfloat16) for name in BFLOAT16_NETWORKS),
        *((name, torch.float32) for name in FLOAT32_NETWORKS),
    ],
    ids=str,
)
def test_a_forward_pass_does_not_wait(
    name: str,
    dtype: torch.dtype,
    r: Any,
    gpu: torch.device,
) -> None:
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    batch = images(name, len(MIXED)).to(gpu, dtype)
    with torch.inference_mode():
        for source in (False, True):
            fast.outputs(batch, r=r, source=source)  # libraries initialise themselves
            with waits_raise():
                fast.outputs(batch, r=r, source=source)


def test_a_new_plan_does_not_wait(gpu: torch.device) -> None:
    fast = tome_core.optimize(network("class-token", gpu, torch.float32), torch.bfloat16)
    batch = images("class-token", len(MIXED)).to(gpu, torch.bfloat16)
    with torch.inference_mode():
        fast.outputs(batch, r=list(MIXED))
        with waits_raise():
            fast.outputs(batch, r=[1, *MIXED[1:]])


def test_a_wait_is_detected(gpu: torch.device) -> None:
    with waits_raise(), pytest.raises(RuntimeError, match="synchroniz"):
        torch.ones(1, device=gpu).item()
