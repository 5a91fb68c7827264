"""AudioMAE is timm's own ViT over a tall picture of one channel: exact without merging."""

from __future__ import annotations

import pytest
import torch

import tome_core
from tests.tome_core.models import make_vit
from tests.tome_core.spectrograms import make_spectrograms
from tome_core import Schedule

SIZE = (64, 128)  # frames, mel bins
SPECTROGRAMS = make_spectrograms(3, SIZE)
TOKENS = 1 + 4 * 8


def make_model() -> tuple[torch.nn.Module, tome_core.MergedViT]:
    vit = make_vit(img_size=SIZE, patch_size=16, in_chans=1, global_pool="avg", num_classes=7)
    return vit, tome_core.patch(vit)


def test_at_r_0_it_equals_timm() -> None:
    vit, model = make_model()
    torch.testing.assert_close(model(SPECTROGRAMS), vit(SPECTROGRAMS), rtol=0, atol=1e-10)
    torch.testing.assert_close(
        tome_core.optimize(model)(SPECTROGRAMS), vit(SPECTROGRAMS), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mixed_batch_equals_its_images_one_by_one(dtype: torch.dtype) -> None:
    _, model = make_model()
    fast = tome_core.optimize(model, dtype)
    spectrograms = SPECTROGRAMS.to(dtype)
    schedules = [Schedule.constant(0), Schedule.constant(9), Schedule.linear(4, -1)]
    mixed = fast(spectrograms, r=schedules)
    single = [fast(spectrograms[i : i + 1], r=r) for i, r in enumerate(schedules)]
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(mixed, torch.cat(single), rtol=tolerance, atol=tolerance)


def test_a_trace_covers_all_patches() -> None:
    _, model = make_model()
    trace = model.trace(SPECTROGRAMS, r=9)
    assert model.patch_grid(SPECTROGRAMS) == (4, 8)
    assert all(int(sizes.sum()) == TOKENS for sizes in trace.sizes)
    assert trace.source.shape == (3, TOKENS)
