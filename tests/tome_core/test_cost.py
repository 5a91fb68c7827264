from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tome_core.models import BEYOND_ORACLE, VARIANTS, make_images, make_vit
from tests.tome_core.vjepa2 import make_clips, make_vjepa2
from tome_core import Kth, Pairs, Schedule, patch
from tome_core.attention import explicit_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.cost import BlockCost, Cost
from tome_core.execution import Execution

R: list[Any] = [0, 1, 3, 8, Schedule.linear(3, -1), Schedule.per_layer([0, 5])]


@pytest.mark.parametrize(
    "variant",
    [
        "class-token",
        "average-no-prefix",
        "distilled",
        "registers",
        "gated",
        "swiglu",
        "wide-heads",
        "four-heads",
        "features-only",
        "attention-pool",
        "attention-pool-with-prefix",
        "post-norm",
        "differential",
        "side-by-side",
    ],
)
def test_macs_equal_the_flops_that_pytorch_counts(variant: str) -> None:
    vit = make_vit(dtype=torch.float32, **{**VARIANTS, **BEYOND_ORACLE}[variant])
    assert_macs_are_counted(vit, make_images(1, dtype=torch.float32))


@pytest.mark.parametrize("classes", [0, 5])
def test_macs_of_v_jepa_2_and_its_pooler_equal_the_flops_that_pytorch_counts(classes: int) -> None:
    vit = make_vjepa2(dtype=torch.float32, num_classes=classes)
    assert_macs_are_counted(vit, make_clips(vit, 1))


@pytest.mark.parametrize("variant", ["class-token", "wide-heads", "differential", "side-by-side"])
@pytest.mark.parametrize("options", [{"merging": "pairs"}, {"matcher": Pairs()}])
def test_macs_of_pairs_equal_the_flops_that_pytorch_counts(
    variant: str, options: dict[str, Any]
) -> None:
    vit = make_vit(dtype=torch.float32, **{**VARIANTS, **BEYOND_ORACLE}[variant])
    assert_macs_are_counted(vit, make_images(1, dtype=torch.float32), **options)


@torch.no_grad()
def assert_macs_are_counted(vit: Any, image: torch.Tensor, **options: Any) -> None:
    # PyTorch counts explicit products on every device, and its fused kernel on some.
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    model = patch(vit.requires_grad_(False), **options)
    model.execution = Execution(ReferenceStrategy(explicit_attention))
    tokens = model.input_tokens(image)
    counted = {}
    predicted = {}
    for r in R:
        with FlopCounterMode(display=False) as counter:
            model(image, r=r)
        counted[r] = counter.get_total_flops()
        predicted[r] = 2 * model.cost().macs(model.token_counts(r, tokens))
    assert predicted == counted


def test_macs_equal_a_sum_by_hand() -> None:
    cost = Cost(fixed=1000, blocks=(BlockCost(3, 5, 2, 1), BlockCost(3, 5, 2, 1)))
    assert cost.macs((4, 4, 4)) == 1000 + 2 * (4 * 3 + 16 * 2 + 4 * 5)
    assert cost.relative((4, 4, 4)) == 1
    assert cost.relative((4, 3, 2)) < 1


def test_blocks_of_a_pool_attend_to_the_tokens_that_are_left() -> None:
    pool_blocks = (BlockCost(7, 11, 13, 17),) * 2
    cost = Cost(100, (BlockCost(3, 5, 2, 1),), prefix=1, pool=19, pool_blocks=pool_blocks)
    blocks = 6 * 3 + 36 * 2 + 4 * 5 + 3 * 2
    assert cost.macs((6, 4)) == 100 + blocks + 3 * 19 + 2 * (3 * (7 + 11) + 9 * 13)
    assert cost.attended((6, 4)) == (6, 3, 3)


def test_more_merging_costs_less() -> None:
    model = patch(make_vit())
    costs = [model.cost().relative(model.token_counts(r, 17)) for r in range(9)]
    assert costs[0] == 1
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 9


def test_counts_follow_the_model_and_its_matcher() -> None:
    assert patch(make_vit()).token_counts(3, 17) == (17, 14, 11, 8)
    assert patch(make_vit()).token_counts(Schedule.per_layer([3]), 17) == (17, 14, 14, 14)
    assert patch(make_vit(), matcher=Kth(2)).token_counts(3, 17) == (17, 9, 5, 3)


def test_a_length_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError):
        patch(make_vit()).cost().macs((17, 14))
