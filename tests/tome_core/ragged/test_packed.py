from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.tome_core.models import make_vit
from tome_core import Bipartite, Kth, Schedule, patch
from tome_core.matching import Matching
from tome_core.merge import weighted_mean
from tome_core.metric import BlockTensors
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import Plan, make_plan


def plan_of_two_groups() -> Plan:
    return make_plan([Schedule.of(0), Schedule.of(2)], 2, 9, 1, Bipartite())


def test_flat_sizes_are_none_while_nothing_is_merged() -> None:
    plan = plan_of_two_groups()
    packed = Packed(torch.zeros(18, 4), (None, None), None)
    assert packed.flat_sizes(plan, 0) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_flat_sizes_are_those_of_all_groups_and_1_where_nothing_is_merged(
    dtype: torch.dtype,
) -> None:
    plan = plan_of_two_groups()
    accumulated = torch.promote_types(dtype, torch.float32)
    merged = torch.tensor([[1, 2, 2, 1, 1, 1, 1]], dtype=accumulated)
    packed = Packed(torch.zeros(16, 4, dtype=dtype), (None, merged), None)
    sizes = packed.flat_sizes(plan, 1)
    assert sizes is not None
    assert sizes.dtype == accumulated
    assert sizes.tolist() == [1] * 9 + [1, 2, 2, 1, 1, 1, 1]


def other_metric(features: BlockTensors) -> Tensor:
    return features.after


def other_combine(
    tokens: Tensor,
    sizes: Tensor,
    matching: Matching,
    length: int,
) -> tuple[Tensor, Tensor]:
    return weighted_mean(tokens, sizes, matching, length)


def test_only_the_default_metric_matcher_and_combination_are_those_of_the_paper() -> None:
    merging = patch(make_vit()).merging
    assert merging.follows_paper
    assert not replace(merging, matcher=Kth(2)).follows_paper
    assert not replace(merging, metric=other_metric).follows_paper
    assert not replace(merging, combine=other_combine).follows_paper
