"""`patch`: from a timm model to one that merges."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from tome_core.backends.reference import GroupByGroup
from tome_core.matching import Bipartite, Matcher
from tome_core.model import MergedViT
from tome_core.ragged.packed import Merging


def patch(vit: nn.Module, *, prop_attn: bool = True, matcher: Matcher | None = None) -> MergedViT:
    """A new module over the weights of ``vit`` that merges tokens as each call asks; ``vit`` itself is untouched.

    Args:
        vit: a timm Vision Transformer.
        prop_attn: proportional attention in the blocks (paper, equation 1). Switch it off for MAE
            models that were not trained with merging (paper, table 1f).
        matcher: how tokens are matched; default `Bipartite`, the paper's.

    Raises:
        UnsupportedModelError: some part of ``vit`` is not fully understood; the message names it.
    """
    from tome_core.adapters import adapt

    adapt(vit)  # refuses before anything is copied
    # The modules are copied and the weights are shared, so that flags such as .training are the
    # copy's own.
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*vit.parameters(), *vit.buffers())}
    adapter = adapt(copy.deepcopy(vit, memo))
    merging = Merging(matcher or Bipartite(), prop_attn, adapter.prefix, GroupByGroup())
    return MergedViT(adapter, merging)
