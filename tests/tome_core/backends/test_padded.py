"""The padded strategy, run on the CPU, compared with the reference strategy."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.models import DEPTH, as_schedule, make_images, make_vit, randomise, specs
from tests.tome_core.oracle import Spec
from tome_core import Bipartite, Kth, MergedViT, Schedule, patch
from tome_core.backends.padded import PaddedStrategy, match, padded_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from tome_core.ragged.padding import padded_layouts
from tome_core.ragged.plan import Plan, make_plan

MODELS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "no-prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "attention-pool": {"global_pool": "map", "reg_tokens": 2},
    "distilled": {"distilled": True},
}
batches = st.lists(specs(), min_size=1, max_size=6)


def reference_and_padded(model: MergedViT) -> tuple[MergedViT, MergedViT]:
    """The model with the reference strategy, and with the padded one."""
    assert isinstance(model.execution.strategy, ReferenceStrategy)
    other = MergedViT(model.adapter, model.merging, Execution(PaddedStrategy())).eval()
    return model, other


def assert_same(model: MergedViT, images: Tensor, r: list[Any]) -> None:
    reference, offsets = reference_and_padded(model)
    expected = reference.trace(images, r=r)
    got = offsets.trace(images, r=r)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=1e-9)
    assert torch.equal(got.source, expected.source)
    for name in ("tokens", "sizes"):
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=0, atol=1e-9)
    torch.testing.assert_close(offsets(images, r=r), expected.logits, rtol=0, atol=1e-9)


@cache
def model_of_variant(variant: str) -> MergedViT:
    return patch(make_vit(**MODELS[variant]), prop_attn=variant != "registers")


@pytest.mark.parametrize("variant", MODELS)
@given(batches)
@torch.no_grad()
def test_equals_the_reference(variant: str, batch: list[Spec]) -> None:
    assert_same(
        model_of_variant(variant), make_images(len(batch)), [as_schedule(spec) for spec in batch]
    )


@cache
def with_positions(kind: str) -> MergedViT:
    """A small model whose attention reads positions: rotary, relative or beit."""
    sizes = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": DEPTH,
        "num_heads": 2,
        "num_classes": 5,
    }
    if kind == "rotary":
        from timm.models.eva import Eva

        vit: Any = Eva(**sizes, use_rot_pos_emb=True)
    elif kind == "relative":
        from timm.models.vision_transformer_relpos import VisionTransformerRelPos

        vit = VisionTransformerRelPos(**sizes, class_token=True)
    else:
        from timm.models.beit import Beit

        vit = Beit(**sizes, use_shared_rel_pos_bias=True)
    randomise(vit)
    return patch(vit.eval().double())


@pytest.mark.parametrize("kind", ["rotary", "relative", "beit"])
@given(batches)
@torch.no_grad()
def test_merging_keeps_positions(kind: str, batch: list[Spec]) -> None:
    assert_same(
        with_positions(kind), make_images(len(batch)), [as_schedule(spec) for spec in batch]
    )


def make_one_block_plan(counts: list[tuple[int, int]], prefix: int) -> Plan:
    """A plan of one block from ``(tokens, r)`` of each image."""
    plans = [make_plan((Schedule.of(r),), 1, tokens, prefix, Bipartite()) for tokens, r in counts]
    return Plan(tuple(plan.groups[0] for plan in plans), tuple(range(len(plans))))


images_of_a_batch = st.integers(0, 4).flatmap(
    lambda prefix: st.tuples(
        st.just(prefix),
        st.lists(
            st.tuples(st.integers(max(prefix, 1), 30), st.integers(0, 20)), min_size=1, max_size=5
        ).filter(lambda images: any(r and tokens - prefix > 1 for tokens, r in images)),
    )
)


@given(images_of_a_batch, st.integers(0, 99), st.booleans())
def test_matching_equals_bipartite_on_each_image(
    batch: tuple[int, list[tuple[int, int]]],
    seed: int,
    ties: bool,
) -> None:
    prefix, images = batch
    plan = make_one_block_plan(images, prefix)
    metric = torch.randn(
        plan.length(0), 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    if ties:
        metric = torch.eye(5, dtype=torch.float64)[
            metric.argmax(dim=1)
        ]  # few vectors, with products that are exact
    before, after = padded_layouts(plan, metric)
    dest, merged = match(metric, before, after, prefix)
    start = 0
    for row, group in enumerate(plan.groups):
        tokens, left = group.tokens
        if left == tokens:
            assert torch.equal(dest[row, :tokens], torch.arange(tokens))
            assert not merged[row, :tokens].any()
        else:
            alone = Bipartite()(metric[None, start : start + tokens], tokens - left, prefix)
            assert torch.equal(dest[row, :tokens], alone.dest[0])
            assert torch.equal(merged[row, :tokens], alone.merged[0])
        start += tokens


@given(images_of_a_batch, st.integers(0, 9))
def test_places_pad_and_unpad(batch: tuple[int, list[tuple[int, int]]], width: int) -> None:
    plan = make_one_block_plan(batch[1], batch[0])
    for block, places in enumerate(padded_layouts(plan, torch.empty(0))):
        buffer = torch.randn(plan.length(block), width)
        padded = places.pad(buffer)
        assert padded.shape == (len(batch[1]), places.longest, width)
        assert torch.equal(places.unpad(padded), buffer)
        for (_, view), row, inside in zip(
            plan.views(buffer, block), padded, places.inside, strict=True
        ):
            assert torch.equal(row[inside], view[0])
            assert int(inside.sum()) == view.shape[1]
            assert (row[~inside] == view[0, -1]).all()
        assert places.starts.dtype == torch.int32
        assert places.starts.tolist() == plan.offsets(buffer)[block].tolist()


@torch.no_grad()
def test_nan_or_infinity_in_one_image_does_not_reach_the_others() -> None:
    _, model = reference_and_padded(patch(make_vit(reg_tokens=1)))
    images = make_images(6)
    r = [3, 0, 7, 3, 2, 1]
    clean = model.trace(images, r=r)
    for poison in (float("nan"), float("inf")):
        poisoned = images.clone()
        poisoned[2] = poison
        trace = model.trace(poisoned, r=r)
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(trace.logits[others], clean.logits[others], rtol=0, atol=1e-12)
        assert torch.equal(trace.source[others], clean.source[others])
        assert trace.logits[2].isnan().all()


@torch.no_grad()
def test_padded_attention_with_no_bias_at_all() -> None:
    plan = make_one_block_plan([(5, 0), (9, 3)], 1)
    q, k, v = torch.randn(3, plan.length(0), 2, 4, dtype=torch.float64)
    out = padded_attention(q, k, v, None, padded_layouts(plan, q)[0], None)
    for part in (slice(0, 5), slice(5, 14)):
        alone = ((q[part].transpose(0, 1) @ k[part].permute(1, 2, 0)) / 2).softmax(-1) @ v[
            part
        ].transpose(0, 1)
        torch.testing.assert_close(out[part], alone.transpose(0, 1).flatten(1), rtol=0, atol=1e-12)


@torch.no_grad()
def test_other_matchers_run_the_reference() -> None:
    model = patch(make_vit(), matcher=Kth(3))
    assert_same(model, make_images(3), [0, 1, Schedule.per_layer([1, 0, 1])])


def test_gradients_are_those_of_the_reference() -> None:
    reference, offsets = reference_and_padded(patch(make_vit()))
    images = make_images(4)
    r = [0, 2, 5, 2]
    gradients: list[list[Tensor]] = []
    for model in (reference, offsets):
        model.zero_grad()
        model(images, r=r).square().sum().backward()
        gradients.append([])
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradients[-1].append(parameter.grad.clone())
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)
