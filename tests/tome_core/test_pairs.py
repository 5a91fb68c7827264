"""The rules "pairs" and "nearest": their matching, combination, and models that merge by them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core import oracle
from tests.tome_core.models import VARIANTS, as_schedule, make_images, make_vit, specs
from tests.tome_core.oracle import Spec
from tests.tome_core.test_model import MIXABLE, assert_equal
from tome_core import Pairs, Schedule, optimize, patch
from tome_core.matching import Matching
from tome_core.merge import norm_preserving_mean
from tome_core.merging import RULES
from tome_core.rules import RuleName

SEEDS = st.integers(0, 2**31)
NAMES: list[RuleName] = ["pairs", "nearest"]
names = st.sampled_from(NAMES)


def random_metric(batch: int, tokens: int, seed: int, width: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64)


def match(name: RuleName, metric: Tensor, r: int, prefix: int) -> Matching:
    return RULES[name].matcher(metric, r, prefix)


def expected_maps(name: RuleName, metric: Tensor, r: int, prefix: int) -> list[list[int]]:
    maps = []
    for image in metric.numpy():
        pairs = oracle.most_similar_pairs(list(image), r, prefix, name)
        maps.append(oracle.dest_map(oracle.same_order(pairs, len(image))))
    return maps


@given(names, st.integers(0, 24), st.integers(0, 5), st.integers(0, 14), SEEDS)
def test_the_matching_equals_the_oracle(
    name: RuleName, patches: int, prefix: int, r: int, seed: int
) -> None:
    metric = random_metric(2, patches + prefix, seed)
    matching = match(name, metric, r, prefix)
    assert matching.dest.tolist() == expected_maps(name, metric, r, prefix)
    left = Pairs().remaining(patches + prefix, r, prefix)
    assert (~matching.merged).sum(dim=1).tolist() == [left, left]


@given(
    names,
    st.lists(st.integers(0, 3), min_size=2, max_size=14),
    st.integers(0, 2),
    st.integers(1, 7),
)
def test_of_equal_similarities_the_lowest_positions_come_first(
    name: RuleName, directions: list[int], prefix: int, r: int
) -> None:
    # Similarities are 0 and 1, or -1 and 0, exactly, so nearly all of them are equal.
    metric = torch.eye(4, dtype=torch.float64)[directions].unsqueeze(0)
    assert match(name, metric, r, prefix).dest.tolist() == expected_maps(name, metric, r, prefix)


@pytest.mark.parametrize("name", NAMES)
def test_one_token_after_the_other_is_nearest_to_the_last(name: RuleName) -> None:
    # Each round finds one pair alone: every token but the two last is most like the next one.
    angles = torch.tensor([1 / position for position in range(1, 13)], dtype=torch.float64)
    metric = torch.stack([angles.cos(), angles.sin()], dim=-1).unsqueeze(0)
    for r in range(7):
        assert match(name, metric, r, 0).dest.tolist() == expected_maps(name, metric, r, 0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_merge_last(name: RuleName, bad: float) -> None:
    metric = random_metric(1, 9, seed=0)
    metric[0, [2, 5]] = bad
    matching = match(name, metric, 3, 1)
    others = [0, 1, 3, 4, 6, 7, 8]
    assert matching.merged[0, [2, 5]].tolist() == [False, False]
    alone = match(name, metric[:, others], 3, 1)
    assert matching.merged[0, others].tolist() == alone.merged[0].tolist()
    everything = match(name, metric, 4, 1)
    assert everything.merged.sum() == 4
    assert sorted(set(everything.dest[0].tolist())) == [0, 1, 2, 3, 4]


@given(st.integers(1, 12), st.integers(1, 6), SEEDS)
def test_a_merged_token_is_as_long_as_its_tokens_are_on_average(
    tokens: int, r: int, seed: int
) -> None:
    values = random_metric(2, tokens, seed, width=5)
    sizes = torch.randint(1, 4, (2, tokens), generator=torch.Generator().manual_seed(seed)).double()
    matching = Pairs()(values, r, 0)
    length = Pairs().remaining(tokens, r, 0)
    merged, merged_sizes = norm_preserving_mean(values, sizes, matching, length)
    for image, position in itertools.product(range(2), range(length)):
        olds = (matching.dest[image] == position).nonzero()[:, 0].tolist()
        assert merged_sizes[image, position] == sizes[image, olds].sum()
        if len(olds) == 1:
            assert torch.equal(merged[image, position], values[image, olds[0]])
            continue
        parts = [
            oracle.Token(values[image, old].numpy(), [0] * int(sizes[image, old])) for old in olds
        ]
        expected = oracle.combine_with_norm(parts).value
        np.testing.assert_allclose(merged[image, position].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_that_nothing_merges_into_keeps_its_bits(dtype: torch.dtype) -> None:
    values = random_metric(1, 6, seed=0).to(dtype)
    sizes = torch.tensor([[1.0, 3, 7, 1, 1, 1]])
    matching = Matching.into(torch.tensor([[0, 1, 2, 5, 4, 5]]))
    merged, _ = norm_preserving_mean(values, sizes, matching, 5)
    assert merged.dtype == dtype
    assert torch.equal(merged[:, :4], values[:, [0, 1, 2, 4]])


@pytest.mark.parametrize("length", [1.0, 1e4])
def test_opposite_tokens_make_a_token_of_zero_with_finite_gradients(length: float) -> None:
    values = torch.tensor([[[length, 0], [-length, 0], [0, 0]]], requires_grad=True)
    matching = Matching.into(torch.tensor([[1, 1, 2]]))
    merged, _ = norm_preserving_mean(values, torch.ones(1, 3), matching, 2)
    assert torch.equal(merged, torch.zeros(1, 2, 2))
    merged.sum().backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())


def test_lengths_count_for_nearest_alone() -> None:
    # The first two point the same way, the last two are close to each other.
    metric = torch.tensor([[[1.0, 0], [9, 0], [3, 1], [3, 2]]], dtype=torch.float64)
    assert match("pairs", metric, 1, 0).dest.tolist() == [[0, 0, 1, 2]]
    assert match("nearest", metric, 1, 0).dest.tolist() == [[0, 1, 2, 2]]


@settings(max_examples=100)
@given(
    names,
    st.sampled_from(sorted(VARIANTS)),
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    specs(),
    st.booleans(),
    SEEDS,
)
def test_a_model_equals_the_oracle(
    name: RuleName, variant: str, grid: tuple[int, int], spec: Spec, prop_attn: bool, seed: int
) -> None:
    size = (4 * grid[0], 4 * grid[1])
    vit = make_vit(seed, img_size=size, **VARIANTS[variant])
    image = make_images(1, size, seed)
    model = patch(vit, merging=name, prop_attn=prop_attn)
    with torch.no_grad():
        trace = model.trace(image, r=as_schedule(spec))
        pooled = model.embed(image, r=as_schedule(spec))
        optimised = optimize(model)(image, r=as_schedule(spec))
    expected = oracle.forward(vit, image[0].numpy(), spec, prop_attn, merging=name)
    assert trace.source[0].tolist() == expected.source
    assert trace.sizes[0].tolist() == expected.sizes
    assert_equal(trace.tokens[0], torch.from_numpy(expected.tokens))
    assert_equal(trace.logits[0], torch.from_numpy(expected.logits))
    assert_equal(pooled[0], torch.from_numpy(expected.pooled))
    assert_equal(optimised[0], torch.from_numpy(expected.logits))


@settings(max_examples=40)
@given(names, st.sampled_from(MIXABLE), st.lists(specs(), min_size=1, max_size=6), SEEDS)
def test_a_mixed_batch_equals_its_images_one_by_one(
    name: RuleName, variant: str, batch: list[Spec], seed: int
) -> None:
    model = patch(make_vit(seed, **VARIANTS[variant]), merging=name)
    images = make_images(len(batch), seed=seed)
    r = [as_schedule(spec) for spec in batch]
    with torch.no_grad():
        together = model.trace(images, r=r)
        for at in range(len(batch)):
            alone = model.trace(images[at : at + 1], r=r[at])
            assert torch.equal(together.source[at], alone.source[0])
            assert_equal(together.logits[at], alone.logits[0])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("r", [0, [0, 0], Schedule.per_layer([])])
def test_r_0_is_the_timm_model(r: Any, name: RuleName) -> None:
    vit = make_vit()
    images = make_images(2)
    assert_equal(patch(vit, merging=name)(images, r=r), vit(images), 1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_merges_exactly_r_and_stays_near(
    dtype: torch.dtype, name: RuleName
) -> None:
    exact = patch(make_vit(), merging=name).trace(make_images(3), r=3)
    model = patch(make_vit(dtype=dtype), merging=name)
    trace = model.trace(make_images(3, dtype=dtype), r=3)
    assert isinstance(trace.sizes, Tensor) and isinstance(exact.sizes, Tensor)
    assert trace.sizes.shape == exact.sizes.shape == (3, 8)
    assert trace.sizes.dtype == torch.float32
    assert trace.sizes.sum(dim=1).tolist() == [17, 17, 17]
    tolerance = 40 * torch.finfo(dtype).eps
    similarity = torch.cosine_similarity(trace.logits.double(), exact.logits)
    assert bool((similarity > 1 - tolerance).all())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: RuleName) -> None:
    vit = make_vit().train()
    model = patch(vit, merging=name).train()
    model(make_images(4), r=[0, 2, 2, 5]).square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert bool(parameter.grad.isfinite().all()), path
        assert bool(parameter.grad.any()), name


def test_the_papers_rule_is_the_default_and_both_share_weights() -> None:
    vit = make_vit()
    images = make_images(2)
    paper = patch(vit)
    pairs = patch(vit, merging="pairs")
    assert torch.equal(paper(images, r=4), patch(vit, merging="paper")(images, r=4))
    assert not torch.allclose(paper(images, r=4), pairs(images, r=4))
    pairs.merging = pairs.merging.with_rule("paper")
    assert torch.equal(paper(images, r=4), pairs(images, r=4))
    assert set(map(id, pairs.parameters())) == set(map(id, vit.parameters()))


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'best' is not known; there are paper, pairs, nearest"):
        patch(make_vit(), merging="best")  # type: ignore[arg-type]
