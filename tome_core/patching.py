"""`patch`: turn a timm model into one that merges tokens."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

from torch import nn

from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from tome_core.matching import Bipartite, Matcher
from tome_core.merging import Merging
from tome_core.model import MergedViT


def patch(
    vit: nn.Module,
    *,
    prop_attn: bool = True,
    matcher: Matcher | None = None,
) -> MergedViT:
    """Return a new module that shares the weights of ``vit`` and merges tokens as calls request.

    ``vit`` itself does not change.

    Args:
        vit: a timm Vision Transformer.
        prop_attn: proportional attention in the blocks (paper, equation 1). Disable it for MAE
            models that were not trained with merging (paper, table 1f).
        matcher: how tokens are matched; default `Bipartite`, as in the paper.

    Raises:
        UnsupportedModelError: the core does not fully understand a part of ``vit``; the message
            names it.
    """
    from tome_core.adapters import adapt

    adapt(vit)  # refuses the model before anything is copied
    # Modules are copied, so that flags such as .training belong to the copy. deepcopy takes what it
    # finds in the memo as it is, so that weights are shared.
    memo: dict[int, Any] = {}
    for tensor in chain(vit.parameters(), vit.buffers()):
        memo[id(tensor)] = tensor
    adapter = adapt(copy.deepcopy(vit, memo))
    merging = Merging(
        matcher=matcher or Bipartite(),
        prop_attn=prop_attn,
        prefix=adapter.prefix,
    )
    return MergedViT(adapter, merging, Execution(ReferenceStrategy()))
