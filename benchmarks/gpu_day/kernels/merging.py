"""Matching and merging in the first block of ViT-B/16, in bfloat16, also of long inputs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_day.kernels.workload import DTYPE, Workload, worst
from tome_core.backends.cuda.attention import unpack
from tome_core.backends.cuda.encoder import Extents
from tome_core.backends.cuda.matching import PackedMatching, Tiles, launch_match
from tome_core.backends.cuda.merging import launch_merge_norm
from tome_core.backends.cuda.placing import launch_place
from tome_core.backends.padded import match as padded_match
from tome_core.matching import Bipartite
from tome_core.merge import merge
from tome_core.ragged.padding import padded_layouts
from tome_core.ragged.plan import make_plan
from tome_core.schedule import Schedule
from tome_core.split import set_sizes

PREFIX = 1
EPS = 1e-6
MIXED = (0, 8, 16, 8)
TILES = (Tiles(128, 32, 8), Tiles(64, 64, 8), Tiles(64, 64, 4), Tiles(16, 64, 4))
SEPARATE_TILES = (
    Tiles(64, 32, 4),
    Tiles(64, 64, 4),
    Tiles(64, 64, 8),
    Tiles(128, 64, 8),
    Tiles(32, 64, 4),
    Tiles(16, 64, 4),
)
WARPS = (1, 2, 4)
OTHER_PLACES = (
    2e-3  # a share of tokens; of products in another order, the larger one may be another
)


def workloads(device: str, dry: bool) -> Iterator[Workload]:
    """All that there are, one by one."""
    heads = 1 if dry else 12
    same = {"r=16": (16,)}
    batches: tuple[tuple[int, int, dict[str, tuple[int, ...]]], ...] = (
        (256, 197, same | {"mixed": MIXED}),
        (32, 197, same),
        (1, 197, same),
        (64, 577, same),
        (1, 577, same),
        (16, 1569, {"r=65": (65,)}),
    )
    if dry:
        batches = ((2, 9, {"mixed": MIXED}),)
    for images, tokens, mixes in batches:
        for name, r in mixes.items():
            block = Block(
                images, tokens, tuple(min(number, tokens // 2) for number in r), heads, device
            )
            for of in (match_of, merge_norm_of, place_of):
                yield of(block, f"{images} x {tokens} {name}")


class Block:
    """What a block has when it merges."""

    def __init__(
        self, images: int, tokens: int, r: tuple[int, ...], heads: int, device: str
    ) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, device=device).to(DTYPE)

        schedules = tuple(Schedule.of(number) for number in islice(cycle(r), images))
        self.plan = make_plan(schedules, 2, tokens, PREFIX, Bipartite())
        self.heads = heads
        self.dim = 64 * heads
        self.tokens = images * tokens
        self.qkv = random(self.tokens, 3 * self.dim)
        self.x = random(self.tokens, self.dim)
        self.branch = random(self.tokens, self.dim)
        self.weight = random(self.dim)
        self.bias = random(self.dim)
        self.sizes = torch.randint(1, 4, (self.tokens,), generator=generator, device=device).float()
        extents = Extents.of(self.plan, self.qkv)
        self.before, self.after = extents.starts[:2]
        self.longest = extents.longest[0]
        self.left = extents.lengths[1]

    @property
    def matching(self) -> tuple[Any, ...]:
        """What the kernels match."""
        return (
            unpack(self.qkv, self.heads)[1],
            self.before,
            self.after,
            self.longest,
            self.left,
            PREFIX,
        )

    def padded_match(self) -> Tensor:
        """The same by operators, on a padded batch: new places, int64 ``(T,)``."""
        before, after = padded_layouts(self.plan, self.qkv)[:2]
        keys = self.qkv.unflatten(1, (3, self.heads, -1))[:, 1].float().mean(1)
        dest, _ = padded_match(keys, before, after, PREFIX)
        return before.unpad(dest + after.starts[:-1, None])

    def dense_match(self) -> Tensor:
        """The same by operators where all images are alike: positions, int64 ``(B, N)``."""
        keys = self.qkv.unflatten(1, (3, self.heads, -1))[:, 1].float().mean(1)
        (group,) = self.plan.groups
        return Bipartite()(keys.unflatten(0, (len(group.images), -1)), group.wanted[0], PREFIX).dest


def match_of(block: Block, shape: str) -> Workload:
    """Both launches of the matching."""
    expected = block.padded_match()

    def deviation(found: PackedMatching) -> float:
        if not torch.equal(
            found.order.long().sort().values, torch.arange(block.tokens, device=expected.device)
        ):
            return float("inf")
        sources = found.order.long().split(found.segment_starts.diff().tolist())
        if not all((found.dest[part] == place).all() for place, part in enumerate(sources[:500])):
            return float("inf")
        return (found.dest.long() != expected).float().mean().item() / OTHER_PLACES

    peers = {"padded operators": block.padded_match}
    if len(block.plan.groups) == 1:
        peers["operators"] = block.dense_match
    return Workload(
        kernel="match",
        shape=shape,
        bytes=block.qkv.nbytes // 3 + 12 * block.tokens,
        flops=0,
        deviation=deviation,
        variants={
            "served": partial(launch_match, *block.matching),
            **{
                f"{tiles.of_a}x{tiles.of_b} w{tiles.warps}": partial(
                    launch_match, *block.matching, tiles
                )
                for tiles in TILES
            },
            **{
                f"separate metric {tiles.of_a}x{tiles.of_b} w{tiles.warps}": partial(
                    launch_match, *block.matching, tiles, separate_metric=True
                )
                for tiles in SEPARATE_TILES
            },
            "fused metric": partial(launch_match, *block.matching, separate_metric=False),
        },
        peers=peers,
    )


def place_of(block: Block, shape: str) -> Workload:
    """The second launch of the matching alone, of similarities without meaning."""
    device = block.qkv.device
    similarity = torch.rand(block.tokens, device=device)
    partner = torch.randint(0, block.longest // 2 - 1, (block.tokens,), device=device).int()
    order, dest = (torch.empty_like(partner) for _ in range(2))
    segment_starts = torch.empty(block.left + 1, dtype=torch.int32, device=device)
    most = max(set_sizes(block.longest, PREFIX))

    def place() -> Tensor:
        launch_place(
            similarity,
            partner,
            block.before,
            block.after,
            order,
            segment_starts,
            dest,
            most,
            PREFIX,
        )
        return order

    def deviation(found: Tensor) -> float:
        whole = torch.equal(found.long().sort().values, torch.arange(block.tokens, device=device))
        return 0.0 if whole else float("inf")

    return Workload("place", shape, 20 * block.tokens, 0, deviation, {"served": place})


def merge_norm_of(block: Block, shape: str) -> Workload:
    """Residual, merge and norm."""
    matched = launch_match(*block.matching)
    dest = matched.dest.long()[None]
    given = (
        block.x,
        block.branch,
        block.sizes,
        matched.order,
        matched.segment_starts,
        block.weight,
        block.bias,
        EPS,
    )
    expected, _ = merge(
        (block.x + block.branch).double()[None], block.sizes.double()[None], dest, block.left
    )

    def deviation(found: tuple[Tensor, Tensor, Tensor]) -> float:
        rows = found[0].float()
        normed = F.layer_norm(rows, (block.dim,), block.weight.float(), block.bias.float(), EPS)
        return max(worst(found[0], expected[0].float()), worst(found[1], normed))

    def operators() -> Tensor:
        merged, _ = merge((block.x + block.branch)[None], block.sizes[None], dest, block.left)
        return F.layer_norm(merged[0], (block.dim,), block.weight, block.bias, EPS)

    return Workload(
        kernel="merge and norm",
        shape=shape,
        bytes=2 * block.x.nbytes + 4 * block.left * block.dim + 12 * block.tokens,
        flops=0,
        deviation=deviation,
        variants={
            "served": partial(launch_merge_norm, *given),
            **{f"w{warps}": partial(launch_merge_norm, *given, warps=warps) for warps in WARPS},
        },
        peers={"operators": operators},
    )
