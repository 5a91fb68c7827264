"""The variants of matching and merging that a GPU runs, and batches to try them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cuda.compiler import Case
from tests.tome_core.backends.cuda.device import DEVICE
from tome_core.backends.cuda import matching, merging, pairs, placing
from tome_core.backends.cuda import similarities as similarity
from tome_core.split import most_mergeable

DTYPES = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}


def partners(dtype: str, heads: int, width: int, packed: bool = True) -> Case:
    row = heads * width * (3 if packed else 1)
    name = f"best_partner {dtype} {heads} heads of {width}{'' if packed else ' alone'}"
    return best_partner(name, dtype, row, heads, width)


def partners_of_metric(width: int) -> Case:
    return best_partner(f"best_partner of metric {width}", "*fp32", width, heads=0, width=width)


def best_partner(name: str, dtype: str, row: int, heads: int, width: int) -> Case:
    """Of keys in rows of ``row`` numbers; with 0 heads the keys are the metric itself."""
    tiles = matching.choose_tiles(width)
    return Case(
        name=name,
        kernel=matching.best_partner_kernel,
        types={
            "keys": dtype,
            "before": "*i32",
            "after": "*i32",
            "similarity": "*fp32",
            "partner": "*i32",
        },
        constants=matching.constants(1, row, heads, width, tiles),
        aligned=("keys", "similarity", "partner"),
        warps=tiles.warps,
        stages=matching.STAGES,
    )


def metric(dtype: str, heads: int, width: int) -> Case:
    return Case(
        name=f"metric {dtype} {heads} heads of {width}",
        kernel=matching.metric_kernel,
        types={"keys": dtype, "metric": "*fp32", "count": "i32"},
        constants=matching.metric_constants(3 * heads * width, heads, width),
        aligned=("keys", "metric"),
        warps=matching.METRIC_WARPS,
    )


def ranks() -> Case:
    return Case(
        name="rank",
        kernel=placing.rank_kernel,
        types={"similarity": "*fp32", **dict.fromkeys(("before", "after", "ranks"), "*i32")},
        constants={"PREFIX": 1, "BLOCK": placing.BLOCK, "CHUNK": placing.CHUNK},
        aligned=("similarity", "ranks"),
        warps=placing.WARPS,
    )


def places(is_ranked: bool) -> Case:
    numbers = ("partner", "before", "after", "ranks", "order", "segment_starts", "dest")
    return Case(
        name=f"place{' by rank' if is_ranked else ''}",
        kernel=placing.place_kernel,
        types={"similarity": "*fp32", **dict.fromkeys(numbers, "*i32"), "segment_count": "i32"},
        constants={
            "PREFIX": 1,
            "BLOCK": placing.BLOCK,
            "CHUNK": placing.CHUNK,
            "IS_RANKED": is_ranked,
        },
        aligned=("similarity", "partner", "ranks", "order", "segment_starts", "dest"),
        warps=placing.WARPS,
    )


def similarities(
    dtype: str, heads: int, width: int, packed: bool = True, by_distance: bool = False
) -> Case:
    channels = heads * width
    row = channels * (3 if packed else 1)
    constants = similarity.similarity_constants(1, row, channels, DTYPES[dtype], by_distance)
    return Case(
        name=f"{'distance' if by_distance else 'cosine'} {dtype} {heads} heads of {width}"
        f"{'' if packed else ' alone'}",
        kernel=similarity.similarity_kernel,
        types={"keys": dtype, "before": "*i32", "after": "*i32", "similarities": "*fp32"},
        constants=constants,
        aligned=("keys", "similarities"),
        warps=similarity.WARPS,
        stages=similarity.STAGES,
    )


def pairing() -> Case:
    floats = ("similarities", "best", "found")
    numbers = (
        *("before", "after", "nearest", "higher", "taken", "merges", "receives"),
        *("order", "segment_starts", "dest"),
    )
    counts = dict.fromkeys(("tiles", "segment_count"), "i32")
    return Case(
        name="pair",
        kernel=pairs.pair_kernel,
        types=dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "*i32") | counts,
        constants=pairs.pair_constants(1),
        aligned=("similarities", "order", "segment_starts", "dest"),
        warps=pairs.WARPS,
    )


def merge_norm(
    dtype: str, dim: int, has_sizes: bool, fused: bool = True, keeps_length: bool = False
) -> Case:
    tokens = ("x", "branch", "weight", "bias", "tokens", "normed")
    numbers = {
        "sizes": "*fp32",
        "order": "*i32",
        "segment_starts": "*i32",
        "new_sizes": "*fp32",
        "eps": "fp32",
    }
    return Case(
        name=f"{'merge_norm' if fused else 'merge'} {dtype} {dim} {has_sizes} {keeps_length}",
        kernel=merging.merge_norm_kernel,
        types=dict.fromkeys(tokens, dtype) | numbers,
        constants=merging.constants(dim, has_sizes, fused, keeps_length),
        aligned=(*tokens, "order", "new_sizes"),
        warps=merging.WARPS,
    )


CASES = [
    *(partners("*bf16", heads, width) for heads, width in ((12, 64), (16, 80), (6, 128), (3, 32))),
    partners("*fp16", 12, 64),
    *(
        partners("*bf16", heads, width, packed=False)
        for heads, width in ((12, 64), (24, 64), (16, 88))
    ),
    partners("*fp32", 16, 64),
    *map(partners_of_metric, (64, 80, 128)),
    metric("*bf16", 12, 64),
    metric("*bf16", 16, 80),
    metric("*fp32", 16, 64),
    ranks(),
    places(is_ranked=False),
    places(is_ranked=True),
    *(merge_norm("*bf16", dim, sizes) for dim in (192, 768, 1280) for sizes in (False, True)),
    *(merge_norm("*bf16", 768, sizes, fused=False) for sizes in (False, True)),
    merge_norm("*fp16", 768, True),
    merge_norm("*fp32", 1024, True),
    *(merge_norm("*bf16", 768, True, fused, keeps_length=True) for fused in (False, True)),
    *(similarities("*bf16", heads, width) for heads, width in ((12, 64), (16, 80), (6, 128))),
    similarities("*fp16", 12, 64),
    similarities("*bf16", 12, 64, packed=False),
    similarities("*fp32", 16, 64),
    similarities("*bf16", 12, 64, by_distance=True),
    similarities("*fp32", 16, 64, by_distance=True),
    pairing(),
]


@dataclass(frozen=True)
class Ragged:
    """Images of several lengths: tokens of each, and how many of them merge."""

    lengths: tuple[int, ...]
    r: tuple[int, ...]

    @property
    def after(self) -> tuple[int, ...]:
        return tuple(length - r for length, r in zip(self.lengths, self.r, strict=True))

    @property
    def longest(self) -> int:
        return max(self.lengths)


def offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([*accumulate(lengths, initial=0)], dtype=torch.int32, device=DEVICE)


@st.composite
def ragged(draw: st.DrawFn, prefix: int, longest: int = 40) -> Ragged:
    """Up to five images; often one that merges nothing, one that merges as much as it can, and tiny
    ones.
    """
    lengths = draw(
        st.lists(
            st.integers(prefix or 1, longest) | st.integers(prefix or 1, prefix + 5),
            min_size=1,
            max_size=5,
        )
    )
    most = [most_mergeable(length, prefix) for length in lengths]
    r = [draw(st.just(0) | st.just(m) | st.integers(0, m)) for m in most]
    return Ragged(tuple(lengths), tuple(r))
