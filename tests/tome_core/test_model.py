from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core import oracle
from tests.tome_core.models import (
    BEYOND_ORACLE,
    VARIANTS,
    as_schedule,
    make_images,
    make_vit,
    specs,
)
from tests.tome_core.oracle import Spec
from tome_core import Bipartite, Kth, Random, Schedule, optimize, patch

TIMM_NAMES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": 64},
    "deit_tiny_distilled_patch16_224": {"img_size": 64},
    "deit3_small_patch16_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_clip_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
    "vit_base_patch16_siglip_gap_224": {"img_size": 64, "embed_dim": 48, "num_heads": 3},
}
# One model per way in which mixing could go wrong: prefix lengths, pools, norms over heads.
MIXABLE = [
    "class-token",
    "average-no-prefix",
    "distilled",
    "registers",
    "average-and-maximum",
    "qk-norm",
    "side-by-side",
]
R_LISTS = st.lists(specs(), min_size=1, max_size=6)


def assert_equal(actual: Tensor | list[Tensor], expected: Any, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    specs(),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_equals_the_oracle(
    variant: str, grid: tuple[int, int], spec: Spec, prop_attn: bool, seed: int
) -> None:
    size = (4 * grid[0], 4 * grid[1])
    vit = make_vit(seed, img_size=size, **VARIANTS[variant])
    images = make_images(2, size, seed)
    model = patch(vit, prop_attn=prop_attn)
    with torch.no_grad():
        trace = model.trace(images, r=as_schedule(spec))
        logits = model(images, r=as_schedule(spec))
        pooled = model.embed(images, r=as_schedule(spec))
    for at, image in enumerate(images.numpy()):
        expected = oracle.forward(vit, image, spec, prop_attn)
        assert trace.source[at].tolist() == expected.source
        assert trace.sizes[at].tolist() == expected.sizes
        assert_equal(trace.tokens[at], torch.from_numpy(expected.tokens))
        assert_equal(logits[at], torch.from_numpy(expected.logits))
        assert_equal(trace.logits[at], torch.from_numpy(expected.logits))
        assert_equal(pooled[at], torch.from_numpy(expected.pooled))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("r", [1, 3, 8])
def test_every_variant_equals_the_oracle(variant: str, r: int) -> None:
    vit = make_vit(r, **VARIANTS[variant])
    image = make_images(1)
    model = patch(vit)
    with torch.no_grad():
        logits = model(image, r=r)
        assert not torch.allclose(logits, vit(image), atol=1e-6), (
            "merging must matter, or this proves nothing"
        )
    expected = torch.from_numpy(oracle.forward(vit, image[0].numpy(), r).logits)
    assert_equal(logits[0], expected)
    assert_equal(optimize(model)(image, r=r)[0], expected)


def test_merging_stops_at_half() -> None:
    vit = make_vit()
    images = make_images(1)
    trace = patch(vit).trace(images, r=1000)
    assert len(trace.tokens[0]) == 3  # 17 -> 9 -> 5 -> 3
    assert_equal(
        trace.logits[0], torch.from_numpy(oracle.forward(vit, images[0].numpy(), 8).logits)
    )


@pytest.mark.parametrize("variant", sorted({**VARIANTS, **BEYOND_ORACLE}))
def test_r_0_is_the_timm_model(variant: str) -> None:
    _assert_is_timm(make_vit(**{**VARIANTS, **BEYOND_ORACLE}[variant]), make_images(3))


@pytest.mark.parametrize("name", sorted(TIMM_NAMES))
def test_r_0_is_the_timm_model_of_that_name(name: str) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(name, depth=2, num_classes=5, **TIMM_NAMES[name]).double().eval()
    size = TIMM_NAMES[name]["img_size"]
    _assert_is_timm(vit, make_images(2, (size, size)))


@torch.no_grad()
def _assert_is_timm(vit: Any, images: Tensor) -> None:
    model = patch(vit)
    features = vit.forward_features(images)
    for r in (0, [0] * len(images), Schedule.per_layer([]), Schedule.linear(0, -1)):
        assert_equal(model(images, r=r), vit(images), 1e-10)
        assert_equal(model.embed(images, r=r), vit.forward_head(features, pre_logits=True), 1e-10)
        assert_equal(model.trace(images, r=r).tokens, features, 1e-10)
    assert_equal(model(images), vit(images), 1e-10)
    assert_equal(optimize(model)(images), vit(images))


def test_other_image_sizes_where_the_model_allows_them() -> None:
    vit = make_vit(dynamic_img_size=True)
    images = make_images(2, (12, 20))
    model = patch(vit)
    assert_equal(model(images), vit(images), 1e-10)
    assert_equal(model(images, r=[0, 3])[0], vit(images)[0], 1e-10)


@settings(max_examples=60)
@given(st.sampled_from(MIXABLE), R_LISTS, st.integers(0, 2**31))
def test_a_mixed_batch_equals_its_images_one_by_one(
    variant: str, batch: list[Spec], seed: int
) -> None:
    model = patch(make_vit(seed, **VARIANTS[variant]))
    images = make_images(len(batch), seed=seed)
    r = [as_schedule(spec) for spec in batch]
    with torch.no_grad():
        together = model(images, r=r)
        embedded = model.embed(images, r=r)
        for at in range(len(batch)):
            alone = images[at : at + 1]
            assert_equal(together[at], model(alone, r=r[at])[0])
            assert_equal(embedded[at], model.embed(alone, r=r[at])[0])


@settings(max_examples=20)
@given(st.permutations(list(range(5))))
def test_the_order_of_the_batch_is_kept(order: list[int]) -> None:
    model = patch(make_vit())
    images = make_images(5)
    r = [0, 4, 8, 4, 0]
    logits = model(images, r=r)
    assert_equal(model(images[order], r=[r[at] for at in order]), logits[order])


@pytest.mark.parametrize("matcher", [Kth(2), Kth(3)])
def test_other_matchers_equal_their_images_one_by_one(matcher: Kth) -> None:
    model = patch(make_vit(), matcher=matcher)
    images = make_images(4)
    r = [0, 1, Schedule.per_layer([0, 1]), 1]
    logits = model(images, r=r)
    for at in range(4):
        assert_equal(logits[at], model(images[at : at + 1], r=r[at])[0])
    assert_equal(patch(make_vit())(images), model(images, r=0), 1e-10)
    assert not torch.allclose(logits[1], model(images)[1])


def test_the_random_matcher_runs_in_a_mixed_batch() -> None:
    model = patch(make_vit(), matcher=Random())
    images = make_images(3)
    logits = model(images, r=[0, 3, 5])
    assert bool(logits.isfinite().all())
    assert_equal(logits[0], model(images)[0])


def test_nan_in_one_image_does_not_reach_others() -> None:
    model = patch(make_vit())
    images = make_images(4)
    expected = model(images, r=[0, 3, 3, 5])
    images[1] = torch.nan
    logits = model(images, r=[0, 3, 3, 5])
    assert bool(logits[1].isnan().all())
    assert_equal(logits[[0, 2, 3]], expected[[0, 2, 3]])


@pytest.mark.parametrize(
    "options", [{}, {"class_token": False, "global_pool": "avg"}, {"reg_tokens": 3}]
)
def test_merging_equal_tokens_changes_nothing(options: dict[str, Any]) -> None:
    # Patches come in fours that are equal, and no position tells them apart, so the first block can
    # merge every second token without loss, and the second again: a key of size s counts as s equal
    # keys did.
    vit = make_vit(pos_embed="none", **options)
    images = (
        make_images(2, (16, 4))
        .repeat_interleave(4, dim=3)
        .unflatten(3, (4, 4))
        .transpose(3, 4)
        .flatten(3)
    )
    assert torch.equal(images[..., :4], images[..., 4:8])
    model = patch(vit)
    plain = model(images)
    for counts in ([3], [8], [8, 2], [8, 4]):
        assert_equal(model(images, r=Schedule.per_layer(counts)), plain)
        # If all tokens have the same size, proportional attention makes no difference.
        if counts[0] == 8:
            continue
        unsized = patch(vit, prop_attn=False)(images, r=Schedule.per_layer(counts))
        assert not torch.allclose(unsized, plain, atol=1e-4)
    noise = make_images(2)
    assert not torch.allclose(model(noise, r=8), model(noise), atol=1e-4)


@pytest.mark.parametrize("r", [[1], [1, 2, 3], [], (1, 2, 3), [Schedule.constant(1)]])
def test_a_list_of_the_wrong_length_is_refused(r: Any) -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        patch(make_vit())(make_images(2), r=r)


@pytest.mark.parametrize("r", [-1, [0, -1]])
def test_a_negative_r_is_refused(r: Any) -> None:
    with pytest.raises(ValueError, match="negative"):
        patch(make_vit())(make_images(2), r=r)


@pytest.mark.parametrize(
    "r", ["16", "ab", 1.0, True, None, [1, 1.0], [1, True], [1, "1"], ["1", "2"], [[1], [2]], 2j]
)
def test_an_r_of_a_wrong_type_is_refused(r: Any) -> None:
    model = patch(make_vit())
    images = make_images(2)
    for call in (model, model.embed, model.trace):
        with pytest.raises(TypeError):
            call(images, r=r)


def test_integers_of_numpy_count_as_integers() -> None:
    model = patch(make_vit())
    images = make_images(2)
    assert_equal(model(images, r=np.int64(3)), model(images, r=3), 0)
    assert_equal(model(images, r=[np.int32(3), 0]), model(images, r=(3, 0)), 0)


def test_a_schedule_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 entries.*3 blocks"):
        patch(make_vit())(make_images(1), r=Schedule.per_layer([0, 0, 0, 0]))


def test_lower_precision_stays_close() -> None:
    images = make_images(8)
    exact = patch(make_vit())(images, r=2)
    assert_equal(patch(make_vit(dtype=torch.float32))(images, r=2).double(), exact, 1e-4)


def test_two_threads_may_share_a_model() -> None:
    model = patch(make_vit(dtype=torch.float32))
    images = make_images(4, dtype=torch.float32)
    calls: list[Any] = [5, [0, 3, 8, 3]]
    expected = [model.trace(images, r=r) for r in calls]
    wrong: list[str] = []
    start = threading.Barrier(2)

    def work(which: int) -> None:
        start.wait()
        for _ in range(40):
            trace = model.trace(images, r=calls[which])
            if not torch.equal(trace.logits, expected[which].logits):
                wrong.append(f"logits of r={calls[which]}")
            if not torch.equal(trace.source, expected[which].source):
                wrong.append(f"source of r={calls[which]}")

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_leaves_nothing_on_the_model() -> None:
    model = patch(make_vit())
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    values = {name: id(value) for name, value in vars(model).items()}
    model.trace(make_images(2), r=[0, 3])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert {name: id(value) for name, value in vars(model).items()} == values


def test_a_model_of_one_block_equals_the_oracle() -> None:
    vit = make_vit(depth=1)
    images = make_images(2)
    model = patch(vit)
    expected = torch.from_numpy(oracle.forward(vit, images[0].numpy(), 3).logits)
    for r in (3, Schedule.linear(3, -1), Schedule.per_layer([3])):
        assert_equal(model(images, r=r)[0], expected)


@pytest.mark.parametrize("make", [np.array, torch.tensor, tuple, list])
def test_r_may_be_any_sequence(make: Callable[[list[int]], Any]) -> None:
    model = patch(make_vit(0))
    images = make_images(3)
    assert torch.equal(model(images, r=make([0, 2, 5])), model(images, r=[0, 2, 5]))


@pytest.mark.parametrize("r", [b"ab", {1, 2}, {1: 2, 3: 4}, None])
def test_an_r_that_is_no_sequence_is_refused(r: Any) -> None:
    with pytest.raises(TypeError):
        patch(make_vit(0))(make_images(2), r=r)


def test_autocast_does_not_change_what_merges() -> None:
    vit = make_vit(0, torch.float32)
    images = make_images(4, dtype=torch.float32)
    seen: list[Tensor] = []

    class Spy(Bipartite):
        def __call__(self, metric: Tensor, r: int, prefix: int) -> Any:
            assert not torch.is_autocast_enabled("cpu")
            seen.append(metric)
            return super().__call__(metric, r, prefix)

    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        patch(vit, matcher=Spy())(images, r=2)
    assert len(seen) == 3 and all(one.dtype == torch.float32 for one in seen)
