from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tests.tome_core.models import make_vit
from tome_core import Kth, patch
from tome_core.matching import Matching
from tome_core.merge import weighted_mean
from tome_core.metric import BlockTensors


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
    assert merging.rule == "paper"
    assert replace(merging, matcher=Kth(2)).rule is None
    assert replace(merging, metric=other_metric).rule is None
    assert replace(merging, combine=other_combine).rule is None
