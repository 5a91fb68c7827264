"""The strategy for GPUs without our kernels: one call of each operator for a whole mixed batch.

Group by group, kernel launches would dominate the time of a batch with many schedules. Here
attention and matching run on a padded batch, with ``r`` as a tensor, one number for each image. No
operator makes the host wait for the device. On a GPU, sums of merged tokens run in no fixed order,
as everywhere in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.backends.reference import ReferenceStrategy
from tome_core.matching import Bipartite, from_edges
from tome_core.merge import accumulation_dtype, weighted_mean
from tome_core.metric import BlockTensors
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.padding import PaddedLayout, padded_layouts
from tome_core.ragged.plan import Plan
from tome_core.split import split


@dataclass(frozen=True)
class PaddedStrategy(ReferenceStrategy):
    """Operators on a padded batch of several groups.

    A batch of one group is dense already; `ReferenceStrategy` runs it.
    """

    def attend(
        self,
        context: BlockContext,
        qkv: tuple[Tensor, Tensor, Tensor],
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        if len(context.plan.groups) == 1 or dropout:
            return super().attend(context, qkv, dropout)
        q, k, v = qkv
        places = padded_layouts(context.plan, q)[context.index]
        bias = _padded_bias(context, places)
        return padded_attention(q, k, v, context.key_sizes(), places, bias)

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        """Match and merge all images at once, if matcher and combination are the paper's.

        The metric may be any, since it describes each token by itself.
        """
        packed = context.packed
        if not context.merges:
            return packed
        merging = context.merging
        plan = context.plan
        following = context.index + 1
        matches_as_paper = merging.matcher == Bipartite()
        matches_and_combines_as_paper = matches_as_paper and merging.combine is weighted_mean
        if len(plan.groups) == 1 or not matches_and_combines_as_paper:
            return super().merge(context, features)
        x = packed.tokens
        places = padded_layouts(plan, x)
        before = places[context.index]
        after = places[following]
        # Autocast would compare tokens in its low precision.
        with torch.autocast(x.device.type, enabled=False):
            metric = merging.metric(features)
            dest, merged = match(metric, before, after, merging.prefix)  # (images, longest)
        new_starts = after.starts[:-1, None]
        new_rows = before.unpad(dest + new_starts)  # (T,), in the buffer after merging
        tokens, new_sizes = _weighted_mean(x, context.sizes(), new_rows, plan.length(following))
        return replace(
            packed,
            tokens=tokens,
            sizes=tuple(view for _, view in plan.views(new_sizes, following)),
            sources=_move_sources(packed, plan, dest),
            positions=_keep_positions(context, new_rows, before.unpad(merged)),
        )


def padded_attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, places: PaddedLayout, bias: Tensor | None
) -> Tensor:
    """Proportional attention (paper, equation 1) within each image: ``(T, H * d)``.

    Args:
        q, k, v: ``(T, H, d)``.
        sizes: of the keys, ``(T,)``; None if all are 1.
        bias: what relative positions add to the logits, ``(images or 1, H, longest, longest)``.
    """
    if sizes is None:
        log_sizes = q.new_zeros(places.padded.shape)
    else:
        log_sizes = places.pad(sizes).log()
    padding = ~places.inside
    mask = log_sizes.masked_fill(padding, -torch.inf)  # (images, longest), of the keys
    mask = mask[:, None, None, :]
    if bias is not None:
        mask = mask + bias
    out = F.scaled_dot_product_attention(
        places.pad(q).transpose(1, 2),  # (images, H, longest, d)
        places.pad(k).transpose(1, 2),
        places.pad(v).transpose(1, 2),
        attn_mask=mask.to(q.dtype),
    )
    by_token = out.transpose(1, 2)
    return places.unpad(by_token).flatten(1)


@torch.no_grad()
def match(
    metric: Tensor, before: PaddedLayout, after: PaddedLayout, prefix: int
) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching of each image, as `Bipartite` does for one image alone.

    Args:
        metric: ``(T, d)``.
        before, after: the places of the tokens before and after merging. An image merges as many
            tokens as its two lengths differ by.

    Returns:
        ``dest`` and ``merged`` of `tome_core.matching.Matching`, ``(images, longest)``, without
        meaning past the end of an image. An image that merges nothing keeps its order.
    """
    unit = before.pad(F.normalize(metric, dim=-1))  # (images, longest, d)
    in_a, in_b = split(prefix)
    similarity, partner = _most_similar(unit, before.inside, in_a, in_b)  # (images, |A|)
    r = before.counts - after.counts  # (images, 1)
    old_position = torch.arange(before.longest, device=metric.device)
    merged_of_a = _rank(similarity, old_position[: similarity.shape[1]]) < r
    count_of_a = before.inside[:, in_a].sum(dim=1, keepdim=True)
    first_destination = prefix + count_of_a - r
    matching = from_edges(merged_of_a, partner, first_destination, before.longest, prefix)
    return torch.where(r > 0, matching.dest, old_position), matching.merged


def _most_similar(unit: Tensor, inside: Tensor, in_a: slice, in_b: slice) -> tuple[Tensor, Tensor]:
    """The highest similarity of each token of A, and its token of B: ``(images, |A|)`` each."""
    unit_a = unit[:, in_a]
    unit_b = unit[:, in_b]
    scores = unit_a @ unit_b.transpose(1, 2)  # (images, |A|, |B|)
    padding_of_b = ~inside[:, None, in_b]
    scores = scores.masked_fill(padding_of_b, -torch.inf)
    similarity, partner = scores.max(dim=-1)
    # Padding has nothing to merge, so it comes last in the order by similarity.
    padding_of_a = ~inside[:, in_a]
    similarity = similarity.masked_fill(padding_of_a, -torch.inf)
    return similarity, partner


def _rank(similarity: Tensor, ranks: Tensor) -> Tensor:
    """The rank of each token in its row ``(images, |A|)``: 0 for the highest; ties by index.

    ``ranks`` are 0, 1, ... ``(|A|,)`` on the device.
    """
    order = similarity.argsort(
        dim=-1,
        descending=True,
        stable=True,
    )
    rank_of_token = torch.empty_like(order)
    return rank_of_token.scatter_(1, order, ranks.expand_as(order))


def _weighted_mean(
    x: Tensor, sizes: Tensor | None, new_rows: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Average the tokens that share a destination, weighted by size, as `weighted_mean` does.

    Args:
        x: ``(T, D)``.
        sizes: ``(T,)``; None while all are 1.
        new_rows: the destination of each token, ``(T,)``.
        length: the number of destinations, T'.

    Returns:
        Tokens ``(T', D)`` and sizes ``(T',)``.
    """
    if sizes is None:
        dtype = accumulation_dtype(x.dtype)
        sizes = torch.ones(len(x), dtype=dtype, device=x.device)
    new_sizes = sizes.new_zeros(length)
    new_sizes = new_sizes.index_add(0, new_rows, sizes)
    weighted = x.to(sizes.dtype) * sizes[:, None]
    sums = weighted.new_zeros(length, x.shape[1])
    sums = sums.index_add(0, new_rows, weighted)
    means = sums / new_sizes[:, None]
    return means.to(x.dtype), new_sizes


def _move_sources(packed: Packed, plan: Plan, dest: Tensor) -> tuple[Tensor, ...] | None:
    """The position of each input token after ``dest (images, longest)``, for each group."""
    if not packed.sources:
        return packed.sources
    images_of_groups = [group.images for group in plan.groups]
    moved = dest.gather(1, torch.cat(packed.sources))
    return moved.split(images_of_groups)


def _keep_positions(
    context: BlockContext,
    new_rows: Tensor,
    merged: Tensor,
) -> tuple[Tensor, ...] | None:
    """The input positions of the tokens that stay, for each group.

    Args:
        new_rows: the destination of each token, ``(T,)``.
        merged: whether each token merges into another one, ``(T,)``.
    """
    positions = context.positions()
    if positions is None:
        return None
    plan = context.plan
    following = context.index + 1
    length = plan.length(following)
    # Merged tokens write to one extra place at the end, which is then cut off.
    rows = torch.where(merged, length, new_rows)
    kept = positions.new_zeros(length + 1)
    kept.scatter_(0, rows, positions)
    return tuple(view for _, view in plan.views(kept[:length], following))


def _padded_bias(context: BlockContext, places: PaddedLayout) -> Tensor | None:
    """What relative positions add to the logits, ``(images or 1, H, longest, longest)``."""
    positional = context.positional
    if positional is None or not positional.has_bias:
        return None
    index = context.index
    positions = None
    if any(group.tokens[index] < group.tokens[0] for group in context.plan.groups):
        positions = context.positions()
    return positional.bias(index, None if positions is None else places.pad(positions))
