from __future__ import annotations

import pytest
import torch

from tome_core import Bipartite, Schedule
from tome_core.merging import Merging
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import make_plan


def context_of_two_groups(index: int, packed: Packed) -> BlockContext:
    plan = make_plan([Schedule.of(0), Schedule.of(2)], 2, 9, 1, Bipartite())
    return BlockContext(Merging(Bipartite(), prop_attn=True, prefix=1), plan, index, packed)


def test_sizes_are_none_while_nothing_is_merged() -> None:
    packed = Packed(torch.zeros(18, 4), (None, None), None)
    assert context_of_two_groups(0, packed).sizes() is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_sizes_are_those_of_all_groups_and_1_where_nothing_is_merged(dtype: torch.dtype) -> None:
    accumulated = torch.promote_types(dtype, torch.float32)
    merged = torch.tensor([[1, 2, 2, 1, 1, 1, 1]], dtype=accumulated)
    packed = Packed(torch.zeros(16, 4, dtype=dtype), (None, merged), None)
    sizes = context_of_two_groups(1, packed).sizes()
    assert sizes is not None
    assert sizes.dtype == accumulated
    assert sizes.tolist() == [1] * 9 + [1, 2, 2, 1, 1, 1, 1]
