"""The strategy for GPUs without kernels of ours: all images of a mixed batch in one call of each operator.

Group by group, a batch of many schedules would be bound by the launches of small kernels. Here
attention and matching run on a padded batch, with ``r`` as a tensor, one number an image. No
operator makes the host wait for the device. Sums of merged tokens run in no fixed order on a GPU,
as everywhere in PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tome_core.backends.reference import GroupByGroup
from tome_core.matching import Bipartite
from tome_core.merge import accumulation_dtype, weighted_mean
from tome_core.metric import Features
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.padding import Places, places_of
from tome_core.ragged.plan import Plan


@dataclass(frozen=True)
class Offsets(GroupByGroup):
    """Padded operators over several groups; one group is a dense batch, and goes the way of `GroupByGroup`."""

    def attend(
        self,
        merging: Merging,
        plan: Plan,
        index: int,
        packed: Packed,
        qkv: tuple[Tensor, Tensor, Tensor],
        positional: Positional | None,
        dropout: float,
    ) -> Tensor:
        """Three of ``(T, H, d)`` -> ``(T, H * d)``."""
        if len(plan.groups) == 1 or dropout:
            return super().attend(merging, plan, index, packed, qkv, positional, dropout)
        q, k, v = qkv
        places = places_of(plan, q)[index]
        sizes = packed.flat_sizes(plan, index) if merging.prop_attn else None
        bias = None
        if positional is not None and positional.biased and packed.positions is not None:
            positions = torch.cat([part.flatten() for part in packed.positions])
            bias = positional.bias(
                index, places.pad(positions) if _has_merged(plan, index) else None
            )
        return padded_attention(q, k, v, sizes, places, bias)

    def merge(
        self, merging: Merging, plan: Plan, index: int, packed: Packed, features: Features
    ) -> Packed:
        """Matching and merging of all images at once, if they are the paper's."""
        if not plan.merges(index):
            return packed
        papers = merging.matcher == Bipartite() and merging.combine is weighted_mean
        if len(plan.groups) == 1 or not papers:
            return super().merge(merging, plan, index, packed, features)
        x = packed.tokens
        before, after = places_of(plan, x)[index : index + 2]
        with torch.autocast(
            x.device.type, enabled=False
        ):  # which would compare in its low precision
            dest, merged = match(merging.metric(features), before, after, merging.prefix)
        place = before.unpad(dest + after.starts[:-1, None])
        left = plan.length(index + 1)
        sizes = packed.flat_sizes(plan, index)
        if sizes is None:
            sizes = torch.ones(len(x), dtype=accumulation_dtype(x.dtype), device=x.device)
        new_sizes = sizes.new_zeros(left).index_add(0, place, sizes)
        weighted = x.to(sizes.dtype) * sizes[:, None]
        sums = weighted.new_zeros(left, x.shape[1]).index_add(0, place, weighted)
        sources = packed.sources
        positions = packed.positions
        counts = [group.images for group in plan.groups]
        if sources:
            sources = dest.gather(1, torch.cat(sources)).split(counts)
        if positions:
            # Merged tokens write theirs to one place too many, which is then cut off.
            stays = torch.where(before.unpad(merged), left, place)
            flat = torch.cat([part.flatten() for part in positions])
            kept = flat.new_zeros(left + 1).scatter_(0, stays, flat)[:left]
            positions = tuple(view for _, view in plan.views(kept, index + 1))
        return replace(
            packed,
            tokens=(sums / new_sizes[:, None]).to(x.dtype),
            sizes=tuple(view for _, view in plan.views(new_sizes, index + 1)),
            sources=sources,
            positions=positions,
        )


def padded_attention(
    q: Tensor, k: Tensor, v: Tensor, sizes: Tensor | None, places: Places, bias: Tensor | None
) -> Tensor:
    """Proportional attention within each image: ``q, k, v (T, H, d)``, ``sizes (T,)`` -> ``(T, H * d)``.

    Args:
        bias: what relative positions add to the logits, ``(images or 1, H, longest, longest)``.
    """
    of_keys = q.new_zeros(places.padded.shape) if sizes is None else places.pad(sizes).log()
    mask = of_keys.masked_fill(~places.inside, -torch.inf)[:, None, None, :]
    mask = (mask if bias is None else mask + bias).to(q.dtype)
    q, k, v = (places.pad(part).transpose(1, 2) for part in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return places.unpad(out.transpose(1, 2)).flatten(1)


@torch.no_grad()
def match(metric: Tensor, before: Places, after: Places, prefix: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching of each image: what `Bipartite` gives it alone, for any number of tokens merged away.

    Args:
        metric: ``(T, d)``.
        before, after: the places that tokens come from and go to; so far apart are the lengths of
            each image.

    Returns:
        ``dest`` and ``merged`` of `tome_core.matching.Matching`, ``(images, longest)``, without
        meaning past the end of an image. An image that merges nothing keeps its order.
    """
    unit = before.pad(F.normalize(metric, dim=-1))
    in_a = slice(prefix + prefix % 2, None, 2)
    in_b = slice(prefix + 1 - prefix % 2, None, 2)
    scores = unit[:, in_a] @ unit[:, in_b].transpose(1, 2)
    scores = scores.masked_fill(~before.inside[:, None, in_b], -torch.inf)
    similarity, partner = scores.max(dim=-1)
    # Past the end an image has nothing to merge, so that comes last in order.
    similarity = similarity.masked_fill(~before.inside[:, in_a], -torch.inf)
    order = similarity.argsort(dim=-1, descending=True, stable=True)
    r = before.counts - after.counts
    steps = torch.arange(before.longest, device=metric.device)
    ranks = torch.empty_like(order).scatter_(1, order, steps[: order.shape[1]].expand_as(order))
    merged_of_a = ranks < r
    first_destination = prefix + before.inside[:, in_a].sum(dim=1, keepdim=True) - r
    unmerged_position = (~merged_of_a).cumsum(dim=-1) + (prefix - 1)
    dest = steps.repeat(len(order), 1)
    dest[:, in_a] = torch.where(merged_of_a, first_destination + partner, unmerged_position)
    dest[:, in_b] = first_destination + steps[: scores.shape[2]]
    merged = torch.zeros_like(before.inside)
    merged[:, in_a] = merged_of_a
    return torch.where(r > 0, dest, steps), merged


def _has_merged(plan: Plan, index: int) -> bool:
    return any(group.tokens[index] < group.tokens[0] for group in plan.groups)
