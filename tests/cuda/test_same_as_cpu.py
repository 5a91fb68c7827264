"""In float64 a GPU gives what the CPU does: the same tokens merge, and the logits agree to 1e-9."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tome_core
from tests.cuda.networks import LEVELS, MIXED, POSITIONS, SMALL, images, network
from tome_core import MergedViT, Trace

pytestmark = pytest.mark.cuda

BATCHES: dict[str, Any] = {**{f"r{r}": r for r in LEVELS}, "mixed": list(MIXED)}


@torch.inference_mode()
def assert_same(expected: Trace, model: MergedViT, name: str, device: torch.device, r: Any) -> None:
    batch = images(name, len(MIXED)).to(device)
    got = model.trace(batch, r=r)
    assert torch.equal(got.source.cpu(), expected.source)
    torch.testing.assert_close(got.logits.cpu(), expected.logits, rtol=0, atol=1e-9)
    # Without a trace the last block may go on with the tokens alone that the head reads.
    torch.testing.assert_close(model(batch, r=r).cpu(), expected.logits, rtol=0, atol=1e-9)
    for mine, theirs in zip(got.sizes, expected.sizes, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=0, atol=1e-9)


@torch.inference_mode()
def on_the_cpu(name: str, r: Any) -> Trace:
    return network(name).trace(images(name, len(MIXED)), r=r)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", [*SMALL, *POSITIONS])
def test_small_networks(name: str, batch: str, device: torch.device) -> None:
    r = BATCHES[batch]
    expected = on_the_cpu(name, r)
    assert_same(expected, network(name, device), name, device, r)
    fast = tome_core.optimize(network(name, device), torch.float64)
    assert_same(expected, fast, name, device, r)


@pytest.mark.parametrize("batch", BATCHES)
def test_vit_s(batch: str, gpu: torch.device) -> None:
    r = BATCHES[batch]
    fast = tome_core.optimize(network("vit-s", gpu), torch.float64)
    assert_same(on_the_cpu("vit-s", r), fast, "vit-s", gpu, r)
