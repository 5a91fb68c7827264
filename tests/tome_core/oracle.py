"""A Vision Transformer with token merging, written out in loops over single tokens, in float64.

It exists to be compared with, so it shares nothing with ``tome_core``: a token here is an object
that remembers which input tokens it was made of, and a matching is a list of pairs. Written from
the paper (arXiv 2210.09461).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tests.tome_core.oracle_layers import (
    NOTHING,
    Bias,
    Vector,
    add,
    array,
    attend,
    attention_branch,
    attention_pool,
    attentive_pooler,
    linear,
    mlp_branch,
    norm,
)

__all__ = ["Result", "Spec", "Token", "attend", "bipartite", "forward", "kth"]

# A schedule as the paper's code takes it: r, (r, inflection), or one r per block.
Spec = int | tuple[int, float] | list[int]


@dataclass
class Token:
    """One token: its value, and the input tokens that it stands for."""

    value: Vector
    members: list[int]

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass
class Result:
    """What one image gives."""

    logits: Vector
    pooled: Vector
    tokens: Vector
    sizes: list[int]
    source: list[int]
    unmerged: list[Vector]  # of every input token, after each block, before the final norm


def counts(spec: Spec, depth: int) -> list[int]:
    """The r of each block, with the floors of the paper's schedules."""
    if isinstance(spec, list):
        return spec + [0] * (depth - len(spec))
    if isinstance(spec, int):
        return [spec] * depth
    r, inflection = spec
    if depth == 1:
        return [r]
    first = int(r * (1.0 - inflection))
    last = 2 * r - first
    step = (last - first) / (depth - 1)
    return [int(first + step * block) for block in range(depth)]


def cosine(a: Vector, b: Vector) -> float:
    """Cosine similarity; 0 where a vector is zero."""
    norm = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(a @ b) / norm if norm else 0.0


def negative_distance(a: Vector, b: Vector) -> float:
    difference = a - b
    return -float(difference @ difference)


def best(metric: Sequence[Vector], token: int, candidates: Sequence[int]) -> tuple[float, int]:
    """The similarity and index of the candidate most like ``token``; of equal ones the first."""
    top = -math.inf
    winner = -1
    for candidate in candidates:
        similarity = cosine(metric[token], metric[candidate])
        if similarity > top:
            top = similarity
            winner = candidate
    return top, winner


def bipartite(
    metric: Sequence[Vector], r: int, prefix: int
) -> tuple[list[tuple[int, int]], list[int]]:
    """Pairs ``(from, into)`` that merge, and all destinations, of bipartite soft matching."""
    tokens = range(prefix, len(metric))
    set_a = [token for token in tokens if token % 2 == 0]
    set_b = [token for token in tokens if token % 2 == 1]
    edges = []
    for token in set_a:
        if set_b:
            similarity, partner = best(metric, token, set_b)
            edges.append((similarity, token, partner))
    edges.sort(key=lambda edge: (-edge[0], edge[1]))
    most = (len(metric) - prefix) // 2
    return [(token, partner) for _, token, partner in edges[: min(r, most)]], set_b


def most_similar_pairs(
    metric: Sequence[Vector], r: int, prefix: int, merging: str
) -> list[tuple[int, int]]:
    """Pairs ``(lower, higher)`` of "pairs" or "nearest", one after the other."""
    compare = {"pairs": cosine, "nearest": negative_distance}[merging]
    similarity = [[compare(one, other) for other in metric] for one in metric]
    free = list(range(prefix, len(metric)))
    pairs = []
    for _ in range(min(r, len(free) // 2)):
        candidates = [(low, high) for low in free for high in free if low < high]
        pair = max(candidates, key=lambda pair: (similarity[pair[0]][pair[1]], -pair[0], -pair[1]))
        pairs.append(pair)
        free = [token for token in free if token not in pair]
    return pairs


def kth(metric: Sequence[Vector], k: int, prefix: int) -> tuple[list[tuple[int, int]], list[int]]:
    """The same, where the last of every ``k`` tokens is a destination and the other ``k - 1``
    merge.
    """
    destinations: list[int] = []
    sources: list[int] = []
    for start in range(prefix, len(metric) - k + 1, k):
        sources.extend(range(start, start + k - 1))
        destinations.append(start + k - 1)
    return [(token, best(metric, token, destinations)[1]) for token in sources], destinations


def new_order(
    pairs: list[tuple[int, int]], destinations: list[int], tokens: int, prefix: int
) -> list[list[int]]:
    """For each new token its old ones: prefix tokens, then unmerged ones, then destinations."""
    gone = {source for source, _ in pairs}
    order = [[token] for token in range(prefix)]
    order += [
        [token]
        for token in range(prefix, tokens)
        if token not in gone and token not in destinations
    ]
    for destination in destinations:
        order.append([destination] + [source for source, into in pairs if into == destination])
    return order


def same_order(pairs: list[tuple[int, int]], tokens: int) -> list[list[int]]:
    """For each new token its old ones, where the tokens that stay keep their order."""
    merged = {into: source for source, into in pairs}
    gone = set(merged.values())
    return [
        [token, merged[token]] if token in merged else [token]
        for token in range(tokens)
        if token not in gone
    ]


def add_branch(tokens: list[Token], branch: list[Vector]) -> list[Token]:
    """The tokens with what a branch gives to each."""
    return [
        Token(token.value + out, token.members) for token, out in zip(tokens, branch, strict=True)
    ]


def give_to_members(unmerged: Vector, tokens: list[Token], branch: list[Vector]) -> Vector:
    """Every input token with what a branch gives to the token that it is part of.

    Unmerging with residuals is the sum of these: a merge takes nothing from an input token.
    """
    unmerged = unmerged.copy()
    for token, out in zip(tokens, branch, strict=True):
        for member in token.members:
            unmerged[member] += out
    return unmerged


def dest_map(order: list[list[int]]) -> list[int]:
    """The new position of every old token."""
    positions = {old: new for new, olds in enumerate(order) for old in olds}
    return [positions[old] for old in range(len(positions))]


def combine(tokens: Sequence[Token]) -> Token:
    """The average of tokens, weighted by how many patches each stands for."""
    total = np.zeros_like(tokens[0].value)
    members: list[int] = []
    for token in tokens:
        total = total + token.size * token.value
        members += token.members
    return Token(total / len(members), members)


def combine_with_norm(tokens: Sequence[Token]) -> Token:
    """The same average, as long as the tokens are on average."""
    mean = combine(tokens)
    length = sum(token.size * math.sqrt(float(token.value @ token.value)) for token in tokens)
    found = math.sqrt(float(mean.value @ mean.value))
    return Token(mean.value * (length / mean.size / found), mean.members)


def merge_tokens(
    tokens: list[Token], keys: list[list[Vector]], r: int, prefix: int, merging: str
) -> list[Token]:
    """The tokens after merging ``r`` of them; ``keys`` are those of all heads of each token."""
    if merging != "paper":
        all_keys = [np.concatenate(of_token) for of_token in keys]
        pairs = most_similar_pairs(all_keys, r, prefix, merging)
        order = same_order(pairs, len(tokens))
        unite = combine_with_norm
    else:
        mean_keys = [add(of_token) / len(of_token) for of_token in keys]
        pairs, destinations = bipartite(mean_keys, r, prefix)
        order = new_order(pairs, destinations, len(tokens), prefix)
        unite = combine
    if not pairs:
        return tokens
    return [
        unite([tokens[old] for old in olds]) if len(olds) > 1 else tokens[olds[0]] for olds in order
    ]


def embed_patches(vit: Any, image: Vector) -> list[Vector]:
    """Patches of an image ``(C, H, W)``, row by row; a network of video has tubelets instead."""
    projection = vit.patch_embed.proj
    kernel = array(projection.weight)
    bias = 0.0 if projection.bias is None else array(projection.bias)
    if kernel.ndim == 4:
        frames = image[:, None]
        kernel = kernel[:, :, None]
        strides = (1, *projection.stride)
    else:
        frames = image.reshape(image.shape[0], vit.patch_embed.frames, -1, image.shape[2])
        strides = projection.stride
    _, _, depth, height, length = kernel.shape
    later, down, right = strides
    patches = []
    for time in range(0, frames.shape[1] - depth + 1, later):
        for top in range(0, frames.shape[2] - height + 1, down):
            for left in range(0, frames.shape[3] - length + 1, right):
                window = frames[:, time : time + depth, top : top + height, left : left + length]
                patches.append(np.array([float((one * window).sum()) for one in kernel]) + bias)
    return patches


def embed(vit: Any, image: Vector) -> list[Token]:
    """Patches, prefix tokens and position embedding."""
    patches = embed_patches(vit, image)
    prefix = []
    for name in ("cls_token", "dist_token", "reg_token"):
        if getattr(vit, name, None) is not None:
            prefix += list(array(getattr(vit, name))[0])
    if getattr(vit, "pos_embed", None) is None:
        values = prefix + patches
    else:
        positions = list(array(vit.pos_embed)[0])
        if getattr(vit, "no_embed_class", False):
            values = prefix + [
                patch + position for patch, position in zip(patches, positions, strict=True)
            ]
        else:
            values = [
                value + position
                for value, position in zip(prefix + patches, positions, strict=True)
            ]
    return [
        Token(norm(getattr(vit, "norm_pre", NOTHING), value), [index])
        for index, value in enumerate(values)
    ]


def pool(vit: Any, values: list[Vector], sizes: list[int]) -> Vector:
    """Global pooling, in which the average counts patches, not tokens."""
    if type(vit).__name__ == "SpectrogramViT" and vit.global_pool == "token":
        return (values[0] + values[1]) / 2
    if vit.global_pool == "token":
        return values[0]
    skip = 0 if getattr(vit, "pool_include_prefix", False) else vit.num_prefix_tokens
    values = values[skip:]
    sizes = sizes[skip:]
    if type(vit).__name__ == "VJepa2" and vit.global_pool == "map":
        return attentive_pooler(vit.attn_pool, values, sizes)
    if vit.global_pool == "map":
        return attention_pool(vit.attn_pool, values, sizes)
    average = sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)
    maximum = np.max(np.stack(values), axis=0)
    return {"avg": average, "max": maximum, "avgmax": (average + maximum) / 2}[vit.global_pool]


def forward(
    vit: Any,
    image: Vector,
    spec: Spec,
    prop_attn: bool = True,
    bias: Callable[[Any, list[int]], Bias] | None = None,
    rotate: Callable[[int, Vector], Vector] | None = None,
    merging: str = "paper",
) -> Result:
    """One image through a timm Vision Transformer in evaluation mode, merging as ``spec`` says.

    ``bias`` is what relative positions say in a block, of tokens at places of the input, and
    ``rotate`` what rotary ones make of a query or key of a head at such a place: a merged token is
    where its destination was, whose place comes first among its members.
    """
    tokens = embed(vit, image)
    inputs = len(tokens)
    prefix = vit.num_prefix_tokens
    unmerged = np.stack([token.value for token in tokens])
    unmerged_by_block = []
    for block, r in zip(vit.blocks, counts(spec, len(vit.blocks)), strict=True):
        values = [token.value for token in tokens]
        weights = [token.size if prop_attn else 1 for token in tokens]
        places = [token.members[0] for token in tokens]
        branch, keys = attention_branch(
            block,
            values,
            weights,
            bias(block, places) if bias else None,
            [partial(rotate, place) for place in places] if rotate else None,
        )
        unmerged = give_to_members(unmerged, tokens, branch)
        tokens = add_branch(tokens, branch)
        if r:
            tokens = merge_tokens(tokens, keys, r, prefix, merging)
        branch = [mlp_branch(block, token.value) for token in tokens]
        unmerged = give_to_members(unmerged, tokens, branch)
        tokens = add_branch(tokens, branch)
        unmerged_by_block.append(unmerged)
    values = [norm(vit.norm, token.value) for token in tokens]
    sizes = [token.size for token in tokens]
    if hasattr(vit, "head_dist"):
        pooled = (values[0] + values[1]) / 2
        logits = (linear(vit.head, values[0]) + linear(vit.head_dist, values[1])) / 2
    else:
        pooled = norm(vit.fc_norm, pool(vit, values, sizes))
        logits = linear(vit.head, pooled)
    source = [
        next(at for at, token in enumerate(tokens) if index in token.members)
        for index in range(inputs)
    ]
    return Result(logits, pooled, np.stack(values), sizes, source, unmerged_by_block)
