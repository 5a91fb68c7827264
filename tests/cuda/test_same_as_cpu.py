"""In float64 a GPU gives what the CPU gives: the same merges, and logits that agree to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tome_core
from tests.cuda.networks import LEVELS, MIXED, POSITIONS, SMALL, SOUND, VIDEO, images, network
from tome_core import MergedViT, Trace

pytestmark = pytest.mark.cuda

BATCHES: dict[str, Any] = {f"r{r}": r for r in LEVELS}
BATCHES["mixed"] = list(MIXED)


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-9)


@torch.inference_mode()
def assert_same(
    expected: Trace,
    model: MergedViT,
    name: str,
    device: torch.device,
    r: Any,
) -> None:
    batch = images(name, len(MIXED)).to(device)
    trace = model.trace(batch, r=r, residual=True)
    assert torch.equal(trace.source.cpu(), expected.source)
    assert_close(trace.logits, expected.logits)
    assert_close(trace.unmerge(), expected.unmerge())
    # Without a trace, the last block may compute only the tokens that the head reads.
    assert_close(model(batch, r=r), expected.logits)
    for sizes, expected_sizes in zip(trace.sizes, expected.sizes, strict=True):
        assert_close(sizes, expected_sizes)


@torch.inference_mode()
def trace_on_cpu(name: str, r: Any) -> Trace:
    return network(name).trace(images(name, len(MIXED)), r=r, residual=True)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*SMALL, *POSITIONS, *SOUND, *VIDEO])
def test_a_small_network_is_the_same_as_on_the_cpu(
    name: str,
    batch: str,
    device: torch.device,
) -> None:
    r = BATCHES[batch]
    expected = trace_on_cpu(name, r)
    assert_same(expected, network(name, device), name, device, r)
    fast = tome_core.optimize(network(name, device), torch.float64)
    assert_same(expected, fast, name, device, r)


@pytest.mark.parametrize("batch", BATCHES)
def test_a_vit_s_is_the_same_as_on_the_cpu(
    batch: str,
    gpu: torch.device,
) -> None:
    r = BATCHES[batch]
    fast = tome_core.optimize(network("vit-s", gpu), torch.float64)
    assert_same(trace_on_cpu("vit-s", r), fast, "vit-s", gpu, r)
