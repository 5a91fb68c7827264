"""What merging takes from each input token: recorded, so that unmerging can give it back.

A merge puts one token in the place of several. The residual of an input token is the sum, over all
merges, of the token that contains it before the merge less the one that contains it after. Besides
merging, only the branches of the blocks change tokens, and they add to them. So the final token of
an input token, plus its residual, is its own embedding plus all that the branches added to the
tokens that contained it. The final norm comes after this sum.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from tome_core.merge import accumulation_dtype, unmerge
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed


def record_residuals(context: BlockContext, merged: Packed) -> Packed:
    """Return ``merged`` with the residuals after one more merge, if the call records them.

    Args:
        context: a block, and its tokens before they merged.
        merged: the tokens after they merged.
    """
    packed = context.packed
    if packed.residuals is None or not context.merges:
        return merged
    views = [view for _, view in context.views(packed.tokens)]
    merged_views = [view for _, view in context.following(merged).views(merged.tokens)]
    sources = packed.sources or ()
    merged_sources = merged.sources or ()
    residuals = list(packed.residuals)
    for number, residual in enumerate(packed.residuals):
        if merged_views[number].shape == views[number].shape:
            continue
        before = unmerge(views[number], sources[number])  # (images, N0, D)
        after = unmerge(merged_views[number], merged_sources[number])  # (images, N0, D)
        dtype = accumulation_dtype(before.dtype)
        lost = before.to(dtype) - after.to(dtype)
        residuals[number] = lost if residual is None else residual + lost
    return replace(merged, residuals=tuple(residuals))


def add_residual(tokens: Tensor, residual: Tensor | None) -> Tensor:
    """Return ``tokens (B, N0, D)`` plus ``residual``, in the dtype of ``tokens``."""
    if residual is None:
        return tokens
    summed = tokens.to(residual.dtype) + residual
    return summed.to(tokens.dtype)
