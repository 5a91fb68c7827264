"""ViTs of video by their names in timm: tokens, and the MACs that their authors report."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import tome_core
from tests.tome_core.clips import make_clips, make_video_vit
from tome_core import MergedViT, Schedule
from tome_core.networks.video_architectures import KINETICS_CLASSES, VIDEO_ARCHITECTURES


def make(name: str, **options: Any) -> MergedViT:
    """A model of full size, without memory."""
    with torch.device("meta"):
        return tome_core.patch(timm.create_model(name, **options).eval())


@pytest.mark.parametrize("name", VIDEO_ARCHITECTURES)
def test_timm_creates_it_by_name_and_merging_supports_it(name: str) -> None:
    model = make(name, depth=1)
    network: Any = model.adapter.network
    assert network.num_classes == KINETICS_CLASSES
    assert network.patch_embed.grid_size == (8 * 14, 14)
    assert network.patch_embed.img_size == (16 * 224, 224)
    assert network.pos_embed.shape[1] == 1568
    assert tuple(model.state_dict()["patch_embed.proj.weight"].shape[1:]) == (3, 2, 16, 16)


# VideoMAE: github.com/MCG-NJU/VideoMAE, MODEL_ZOO.md. MAE-ST: arXiv 2205.09113, table 7. They
# count a multiplication and an addition as one operation, as we do, and those of norms as well.
@pytest.mark.parametrize(
    ("name", "options", "tokens", "published"),
    [
        ("video_vit_small_patch16", {}, 1568, 57),
        ("video_vit_base_patch16", {}, 1568, 180),
        ("video_vit_large_patch16", {}, 1568, 597),
        ("video_vit_large_patch16", {"class_token": True}, 1569, 598),
    ],
)
def test_the_macs_are_those_that_the_authors_report(
    name: str, options: dict[str, Any], tokens: int, published: int
) -> None:
    cost = make(name, **options).cost()
    macs = cost.macs([tokens] * (len(cost.blocks) + 1))
    assert macs == pytest.approx(published * 1e9, abs=0.8e9)


@torch.no_grad()
def test_the_macs_of_the_embedding_are_those_that_pytorch_counts() -> None:
    vit = make_video_vit(dtype=torch.float32, num_classes=0)
    model = tome_core.patch(vit)
    clips = make_clips(1, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        vit.patch_embed(clips)
    assert 2 * model.cost().fixed == counter.get_total_flops() == 2 * 12 * 96 * 16


# Token merging: 2.2 times as fast with r=65 in each of 24 blocks, 3.4 with a decreasing schedule
# (arXiv 2210.09461, table 4).
@pytest.mark.parametrize(
    ("name", "class_token", "schedule", "left", "bound"),
    [
        ("video_vit_large_patch16", True, "65", 38, 2.12),
        ("video_vit_large_patch16", True, "65:-1", 20, 3.25),
        ("video_vit_small_patch16", False, "130", 69, 2.19),
        ("video_vit_small_patch16", False, "130:-1", 21, 3.39),
    ],
)
def test_what_a_schedule_leaves(
    name: str, class_token: bool, schedule: str, left: int, bound: float
) -> None:
    model = make(name, class_token=class_token)
    counts = model.token_counts(Schedule.parse(schedule), 1568 + class_token)
    assert counts[-1] == left
    assert 1 / model.cost().relative(counts) == pytest.approx(bound, abs=0.005)
