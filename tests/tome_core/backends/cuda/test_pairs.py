"""Pairs of a whole buffer, against `Pairs` and `norm_preserving_mean` on each image alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.backends.cuda.merging_cases import Ragged, offsets, ragged
from tome_core.backends.cuda.attention import unpack
from tome_core.backends.cuda.matching import PackedMatching
from tome_core.backends.cuda.merging import merge, merge_norm
from tome_core.backends.cuda.pairs import launch_match_pairs, match_pairs
from tome_core.matching import Matching
from tome_core.merge import norm_preserving_mean
from tome_core.merging import RULES
from tome_core.rules import RuleName

HEADS = 2
WIDTH = 16
PREFIXES = [0, 1, 2, 5]
NAMES: list[RuleName] = ["pairs", "nearest"]
names = st.sampled_from(NAMES)


def random_qkv(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 3 * HEADS * WIDTH, generator=generator).to(DEVICE, dtype)


def run(qkv: Tensor, batch: Ragged, prefix: int, name: RuleName = "pairs") -> PackedMatching:
    before = offsets(batch.lengths)
    after = offsets(batch.after)
    keys = unpack(qkv, HEADS)[1]
    by_distance = name == "nearest"
    return match_pairs(keys, before, after, batch.longest, sum(batch.after), prefix, by_distance)


def expected_matchings(
    qkv: Tensor, batch: Ragged, prefix: int, name: RuleName = "pairs"
) -> list[Matching]:
    """What the matcher of the rule gives, image by image."""
    result = []
    for part, r in zip(qkv.split(batch.lengths), batch.r, strict=True):
        keys = part.view(len(part), 3, HEADS * WIDTH)[:, 1].float()
        result.append(RULES[name].matcher(keys[None], r, prefix))
    return result


def assert_matched(matched: PackedMatching, expected: list[Matching], batch: Ragged) -> None:
    """Check the places, and that the order by destination follows from them."""
    places: list[int] = []
    merging: list[bool] = []
    new_start = 0
    for matching, left in zip(expected, batch.after, strict=True):
        places += [new_start + place for place in matching.dest[0].tolist()]
        merging += matching.merged[0].tolist()
        new_start += left
    assert matched.dest.tolist() == places
    tokens = sorted(range(len(places)), key=lambda token: (places[token], merging[token]))
    assert matched.order.tolist() == tokens
    counts = [places.count(place) for place in range(new_start)]
    assert matched.segment_starts.diff().tolist() == counts
    assert matched.segment_starts[0] == 0


@pytest.mark.parametrize("prefix", PREFIXES)
@settings(max_examples=8)
@given(st.data())
def test_equals_the_rule(prefix: int, data: st.DataObject) -> None:
    name = data.draw(names)
    batch = data.draw(ragged(prefix))
    qkv = random_qkv(sum(batch.lengths), seed=data.draw(st.integers(0, 99)))
    expected = expected_matchings(qkv, batch, prefix, name)
    assert_matched(run(qkv, batch, prefix, name), expected, batch)


@pytest.mark.parametrize("prefix", PREFIXES)
@settings(max_examples=8)
@given(st.data())
def test_among_equal_similarities_the_lowest_win(prefix: int, data: st.DataObject) -> None:
    """Each key has one of three values, with one channel that is not 0: similarities are exact."""
    name = data.draw(names)
    batch = data.draw(ragged(prefix))
    tokens = sum(batch.lengths)
    values = data.draw(st.lists(st.integers(0, 2), min_size=tokens, max_size=tokens))
    qkv = torch.zeros(tokens, 3, HEADS, WIDTH, device=DEVICE)
    qkv[range(tokens), 1, 0, values] = 4.0
    qkv = qkv.flatten(1)
    expected = expected_matchings(qkv, batch, prefix, name)
    assert_matched(run(qkv, batch, prefix, name), expected, batch)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(4))
def test_equal_tokens_are_equally_similar_to_others(seed: int, name: RuleName) -> None:
    """The lowest two of five equal tokens are the first pair, the next two the second."""
    batch = Ragged((24,), (2,))
    qkv = random_qkv(24, seed, torch.float16)
    qkv[[3, 8, 14, 15, 21]] = qkv[5].clone() * 3
    qkv[5] = 0
    matched = run(qkv, batch, 1, name)
    assert [matched.dest[token] for token in (3, 14)] == [matched.dest[token] for token in (8, 15)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_keys(dtype: torch.dtype, name: RuleName) -> None:
    batch = Ragged((37, 12, 12), (16, 0, 5))
    qkv = random_qkv(61, dtype=dtype)
    assert_matched(run(qkv, batch, 1, name), expected_matchings(qkv, batch, 1, name), batch)


@pytest.mark.parametrize(("length", "r", "prefix"), [(197, 16, 1), (257, 128, 1), (300, 90, 5)])
def test_long_images(length: int, r: int, prefix: int) -> None:
    batch = Ragged((length, 30), (r, 3))
    qkv = random_qkv(length + 30)
    assert_matched(run(qkv, batch, prefix), expected_matchings(qkv, batch, prefix), batch)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_zero_keys_nan_and_infinity(value: float) -> None:
    batch = Ragged((20, 21), (9, 7))
    qkv = random_qkv(41)
    qkv[[3, 4, 9, 30, 33]] = value
    assert_matched(run(qkv, batch, 1), expected_matchings(qkv, batch, 1), batch)


@settings(max_examples=8)
@given(ragged(1), st.integers(0, 4))
def test_result_is_independent_of_the_other_images(batch: Ragged, image: int) -> None:
    image %= len(batch.lengths)
    qkv = random_qkv(sum(batch.lengths))
    together = run(qkv, batch, 1)
    alone = Ragged((batch.lengths[image],), (batch.r[image],))
    start = sum(batch.lengths[:image])
    new_start = sum(batch.after[:image])
    matched = run(qkv[start : start + alone.longest].clone(), alone, 1)
    end = start + alone.longest
    new_end = new_start + alone.after[0]
    assert torch.equal(together.dest[start:end] - new_start, matched.dest)
    assert torch.equal(together.order[start:end] - start, matched.order)
    assert torch.equal(
        together.segment_starts[new_start : new_end + 1] - start, matched.segment_starts
    )


def test_a_loose_bound_gives_the_same_result_and_empty_segments() -> None:
    batch = Ragged((70, 33), (20, 0))
    qkv = random_qkv(103)
    expected = run(qkv, batch, 1)
    left = sum(batch.after)
    keys = unpack(qkv, HEADS)[1].contiguous()
    matched = launch_match_pairs(
        keys, offsets(batch.lengths), offsets(batch.after), 200, left + 7, 1
    )
    assert torch.equal(matched.dest, expected.dest)
    assert torch.equal(matched.order, expected.order)
    assert torch.equal(matched.segment_starts[: left + 1], expected.segment_starts)
    assert matched.segment_starts[left:].tolist() == [103] * 8


def test_match_pairs_is_a_valid_operator() -> None:
    batch = Ragged((9, 4), (2, 0))
    keys = unpack(random_qkv(13), HEADS)[1]
    arguments = (keys, offsets(batch.lengths), offsets(batch.after), 9, 11, 1, True)
    torch.library.opcheck(torch.ops.tome.match_pairs.default, arguments)


@pytest.mark.parametrize("has_sizes", [False, True])
@pytest.mark.parametrize("dim", [16, 40])
def test_merged_tokens_keep_the_mean_length(has_sizes: bool, dim: int) -> None:
    batch = Ragged((17, 9, 3), (8, 0, 1))
    tokens = sum(batch.lengths)
    qkv = random_qkv(tokens)
    matched = run(qkv, batch, 1)
    generator = torch.Generator().manual_seed(1)
    x, branch = torch.randn(2, tokens, dim, generator=generator).to(DEVICE)
    weight, bias = torch.randn(2, dim, generator=generator).to(DEVICE)
    sizes = torch.arange(tokens, device=DEVICE).float() % 5 + 1
    if not has_sizes:
        sizes = torch.ones_like(sizes)
    result, _, new_sizes = merge_norm(
        x,
        branch,
        sizes if has_sizes else None,
        matched.order,
        matched.segment_starts,
        weight,
        bias,
        1e-6,
        keeps_length=True,
    )
    summed = x + branch
    merged = []
    merged_sizes = []
    parts = zip(
        summed.split(batch.lengths),
        sizes.split(batch.lengths),
        expected_matchings(qkv, batch, 1),
        batch.after,
        strict=True,
    )
    for part, part_sizes, matching, left in parts:
        values, sums = norm_preserving_mean(part[None], part_sizes[None], matching, left)
        merged.append(values[0])
        merged_sizes.append(sums[0])
    torch.testing.assert_close(result, torch.cat(merged), rtol=1e-5, atol=1e-6)
    assert torch.equal(new_sizes, torch.cat(merged_sizes))
    alone, _ = merge(
        summed,
        sizes if has_sizes else None,
        matched.order,
        matched.segment_starts,
        keeps_length=True,
    )
    assert torch.equal(alone, result)
    is_alone = matched.segment_starts.diff() == 1
    first_tokens = matched.order[matched.segment_starts[:-1].long()].long()
    assert torch.equal(result[is_alone], summed[first_tokens][is_alone])
