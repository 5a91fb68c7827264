"""`patch`: turn a timm model into one that merges tokens."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn

from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from tome_core.matching import Matcher
from tome_core.merging import RULES, Merging
from tome_core.model import MergedViT
from tome_core.rules import RuleName


def patch(
    vit: nn.Module,
    *,
    prop_attn: bool = True,
    merging: RuleName = "paper",
    matcher: Matcher | None = None,
) -> MergedViT:
    """Return a new module that shares the weights of ``vit`` and merges tokens as calls request.

    ``vit`` itself does not change.

    Args:
        vit: a timm Vision Transformer.
        prop_attn: proportional attention in the blocks (paper, equation 1). Disable it for MAE
            models that were not trained with merging (paper, table 1f).
        merging: the rule by which tokens merge: ``paper``, or ``pairs``, which compares all tokens
            with each other; see `tome_core.Pairs`.
        matcher: how tokens are matched, in place of the rule's way.

    Raises:
        ValueError: there is no such rule.
        UnsupportedModelError: the core does not fully understand a part of ``vit``; the message
            names it.
    """
    from tome_core.adapters import adapt

    if merging not in RULES:
        raise ValueError(f"merging={merging!r} is not known; there are {', '.join(RULES)}")
    adapt(vit)  # refuses the model before anything is copied
    # Modules are copied, so that flags such as .training belong to the copy. deepcopy takes what it
    # finds in the memo as it is, so that weights are shared.
    memo: dict[int, Any] = {}
    for tensor in chain(vit.parameters(), vit.buffers()):
        memo[id(tensor)] = tensor
    adapter = adapt(copy.deepcopy(vit, memo))
    rule = RULES[merging]
    way_of_merging = Merging(
        matcher=matcher or rule.matcher,
        prop_attn=prop_attn,
        prefix=adapter.prefix,
        metric=rule.metric,
        combine=rule.combine,
    )
    return MergedViT(adapter, way_of_merging, Execution(ReferenceStrategy()))
