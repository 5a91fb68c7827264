"""Unmerging with residuals, against the oracle and against networks whose branches add nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core import oracle
from tests.tome_core.backends.test_padded import with_positions
from tests.tome_core.models import DEPTH, VARIANTS, as_schedule, make_images, make_vit, specs
from tests.tome_core.oracle import Spec
from tome_core import Kth, MergedViT, Random, Schedule, optimize, patch
from tome_core.backends.padded import PaddedStrategy
from tome_core.execution import Execution
from tome_core.matching import Matching
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.rules import RULE_NAMES, RuleName

SEEDS = st.integers(0, 2**31)
RULES = pytest.mark.parametrize("merging", RULE_NAMES)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
# Lengths of the prefix, norms that are no layer norm or none, and blocks of other kinds.
MIXABLE = ["class-token", "average-no-prefix", "registers", "no-final-norm", "post-norm"]
EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
NEAR: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def all_tokens(model: MergedViT, images: Tensor, r: Any, **options: Any) -> list[Tensor]:
    """The features of all input tokens after each block, ``(B, N0, D)``, with residuals."""
    options = {"unmerge": "residual", **options}
    features = model.intermediates(images, r, return_prefix_tokens=True, **options)
    return [torch.cat([prefix, patches], dim=1) for patches, prefix in features]


def make_still_vit(**options: Any) -> Any:
    """A network whose branches add nothing, so that merging alone changes its tokens."""
    vit = make_vit(**options)
    with torch.no_grad():
        for block in vit.blocks:
            for last in (block.attn.proj, block.mlp.fc2):
                last.weight.zero_()
                last.bias.zero_()
    return vit


def largest(
    tokens: Tensor,
    sizes: Tensor,
    matching: Matching,
    length: int,
) -> tuple[Tensor, Tensor]:
    """A combination that is no mean: the largest value of each channel."""
    index = matching.dest.unsqueeze(-1).expand_as(tokens)
    merged = tokens.new_zeros(len(tokens), length, tokens.shape[2])
    merged = merged.scatter_reduce(1, index, tokens, "amax", include_self=False)
    merged_sizes = sizes.new_zeros(len(sizes), length)
    return merged, merged_sizes.scatter_add(1, matching.dest, sizes)


class Watcher:
    """An encoder that takes no call, and keeps the residuals that each one would record."""

    reads_starts = False

    def __init__(self) -> None:
        self.residuals: list[Any] = []

    def supports(self, context: BlockContext) -> bool:
        self.residuals.append(context.packed.residuals)
        return False

    def __call__(self, context: BlockContext, leading: int | None) -> Packed:
        raise AssertionError


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(VARIANTS)),
    st.tuples(st.integers(1, 4), st.integers(1, 5)),
    specs(),
    st.booleans(),
    st.sampled_from(RULE_NAMES),
    SEEDS,
)
@torch.no_grad()
def test_equals_the_oracle(
    variant: str,
    grid: tuple[int, int],
    spec: Spec,
    prop_attn: bool,
    merging: RuleName,
    seed: int,
) -> None:
    size = (4 * grid[0], 4 * grid[1])
    vit = make_vit(seed, img_size=size, **VARIANTS[variant])
    (image,) = images = make_images(1, size, seed)
    model = patch(vit, merging=merging, prop_attn=prop_attn)
    r = as_schedule(spec)
    expected = oracle.forward(vit, image.numpy(), spec, prop_attn, merging=merging)
    blocks = [torch.from_numpy(block) for block in expected.unmerged]
    normed = [vit.norm(block) for block in blocks]

    trace = model.trace(images, r, residual=True)
    assert trace.source[0].tolist() == expected.source
    torch.testing.assert_close(trace.unmerge()[0], normed[-1], **EXACT)
    for norm, of_oracle in ((False, blocks), (True, normed)):
        found = all_tokens(model, images, r, norm=norm)
        torch.testing.assert_close([block[0] for block in found], of_oracle, **EXACT)


@settings(max_examples=60)
@given(
    st.lists(specs(), min_size=1, max_size=5),
    st.sampled_from([{}, {"merging": "pairs"}, {"matcher": Kth(3)}, {"matcher": Random()}]),
    st.booleans(),
    st.booleans(),
    SEEDS,
)
@torch.no_grad()
def test_merging_alone_is_undone(
    batch: list[Spec],
    options: dict[str, Any],
    padded: bool,
    by_largest: bool,
    seed: int,
) -> None:
    model = patch(make_still_vit(seed=seed, reg_tokens=1), **options)
    images = make_images(len(batch), seed=seed)
    unmerged = model.trace(images).unmerge()
    if padded:
        model.execution = Execution(PaddedStrategy())
    if by_largest:
        model.merging = replace(model.merging, combine=largest)
    r = [as_schedule(spec) for spec in batch]
    torch.testing.assert_close(model.trace(images, r, residual=True).unmerge(), unmerged, **EXACT)


@RULES
@DTYPES
@torch.no_grad()
def test_merging_alone_is_undone_in_every_dtype(merging: RuleName, dtype: torch.dtype) -> None:
    model = patch(make_still_vit(dtype=dtype, embed_dim=32), merging=merging)
    images = make_images(3, dtype=dtype)
    for one in (model, optimize(model)):
        expected = all_tokens(one, images, 0)[-1]
        found = all_tokens(one, images, [3, 2, 5])[-1]
        assert found.dtype == dtype
        if dtype == torch.bfloat16:  # summed in float32, whose errors rounding removes here
            assert torch.equal(found, expected)
        else:
            tolerance = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimised", [False, True])
@RULES
@DTYPES
@torch.no_grad()
def test_without_merging_no_bit_changes(
    merging: RuleName,
    dtype: torch.dtype,
    optimised: bool,
) -> None:
    model = patch(make_vit(dtype=dtype, embed_dim=32), merging=merging)
    if optimised:
        model = optimize(model)
    images = make_images(3, dtype=dtype)
    for r in (0, [0, 0, 0], Schedule.per_layer([])):
        plain = model.trace(images, r)
        trace = model.trace(images, r, residual=True)
        assert torch.equal(trace.logits, plain.logits)
        assert torch.equal(trace.unmerge(), plain.unmerge())
        for norm in (False, True):
            copies = all_tokens(model, images, r, norm=norm, unmerge="copy")
            found = all_tokens(model, images, r, norm=norm)
            assert all(map(torch.equal, found, copies))


@torch.no_grad()
def test_only_calls_that_merge_and_request_them_record_residuals() -> None:
    model = patch(make_vit())
    model.encoder = watcher = Watcher()
    images = make_images(2)
    for r in (0, 3, [0, 3]):
        model(images, r)
        model.trace(images, r)
        model.outputs(images, r, source=True)
    model.trace(images, 0, residual=True)
    assert watcher.residuals == [None] * 10
    model.trace(images, 3, residual=True)
    model.trace(images, [0, 3], residual=True)
    assert watcher.residuals[10:] == [(None,), (None, None)]


@pytest.mark.parametrize("r", [3, [0, 3, 0, 5], Schedule.per_layer([0, 0, 4])])
@RULES
@torch.no_grad()
def test_only_the_features_of_merged_patches_change(r: Any, merging: RuleName) -> None:
    vit = make_vit(reg_tokens=2)
    model = patch(vit, merging=merging)
    images = make_images(4)
    plain = model.trace(images, r)
    trace = model.trace(images, r, residual=True)
    assert plain.unmerged is None
    assert torch.equal(trace.logits, plain.logits)
    assert torch.equal(trace.source, plain.source)
    copies = plain.unmerge()
    changed = (trace.unmerge() != copies).any(dim=-1)  # (B, N0)
    for at, source in enumerate(trace.source):
        assert torch.equal(trace.tokens[at], plain.tokens[at])
        assert torch.equal(trace.sizes[at], plain.sizes[at])
        is_merged = plain.sizes[at][source] > 1
        assert torch.equal(changed[at], is_merged)
        assert not is_merged[: vit.num_prefix_tokens].any()


@settings(max_examples=25)
@given(
    st.sampled_from(MIXABLE),
    st.lists(specs(), min_size=1, max_size=4),
    st.sampled_from(RULE_NAMES),
    st.booleans(),
)
@torch.no_grad()
def test_each_image_has_the_features_it_has_alone(
    variant: str, batch: list[Spec], merging: RuleName, padded: bool
) -> None:
    model = patch(make_vit(**VARIANTS[variant]), merging=merging)
    if padded:
        model.execution = Execution(PaddedStrategy())
    images = make_images(len(batch))
    r = [as_schedule(spec) for spec in batch]
    together = all_tokens(model, images, r, norm=True)
    trace = model.trace(images, r, residual=True)
    assert torch.equal(trace.unmerge(), together[-1])
    assert len(together) == DEPTH
    for at in range(len(batch)):
        alone = all_tokens(model, images[at : at + 1], r[at], norm=True)
        torch.testing.assert_close([block[at : at + 1] for block in together], alone, **EXACT)


@pytest.mark.parametrize("kind", ["rotary", "relative", "beit"])
@torch.no_grad()
def test_positions_of_attention_are_followed(kind: str) -> None:
    model = with_positions(kind)
    padded = MergedViT(model.adapter, model.merging, Execution(PaddedStrategy())).eval()
    images = make_images(4)
    r = [0, 3, 2, 3]
    trace = model.trace(images, r, residual=True)
    assert torch.equal(trace.logits, model.trace(images, r).logits)
    other = padded.trace(images, r, residual=True)
    torch.testing.assert_close(other.unmerge(), trace.unmerge(), **EXACT)
    last = all_tokens(optimize(model), images, r, norm=True)[-1]
    torch.testing.assert_close(last, trace.unmerge(), **EXACT)


@pytest.mark.parametrize("r", [3, [0, 8, 3, 1], Schedule.per_layer([8, 0, 1])])
@RULES
@torch.no_grad()
def test_an_optimised_model_has_the_same_features(r: Any, merging: RuleName) -> None:
    # Heads of 16 channels, which the kernels support.
    model = patch(make_vit(dtype=torch.float32, embed_dim=32), merging=merging)
    fast = optimize(model)
    images = make_images(4, dtype=torch.float32)
    expected = model.trace(images, r, residual=True).unmerge()
    torch.testing.assert_close(fast.trace(images, r, residual=True).unmerge(), expected, **NEAR)
    found = all_tokens(fast, images, r, norm=True)[-1]
    torch.testing.assert_close(found, expected, **NEAR)


def test_the_gradient_is_the_right_one() -> None:
    model = patch(make_vit(depth=2, img_size=8, embed_dim=8))
    images = make_images(2, (8, 8)).requires_grad_()

    def features(images: Tensor) -> tuple[Tensor, ...]:
        return (
            *model.intermediates(images, [1, 2], unmerge="residual"),
            model.trace(images, [1, 2], residual=True).unmerge(),
        )

    assert torch.autograd.gradcheck(features, (images,), fast_mode=True)


@RULES
def test_training_with_checkpoints_has_the_same_gradients(merging: RuleName) -> None:
    images = make_images(4)
    gradients = []
    for checkpointing in (False, True):
        vit = make_vit(drop_path_rate=0.3, init_values=0.5)
        vit.set_grad_checkpointing(checkpointing)
        model = patch(vit, merging=merging).train()
        torch.manual_seed(0)
        features = model.trace(images, [0, 3, 2, 3], residual=True).unmerge()
        features.square().sum().backward()
        blocks = vit.blocks.named_parameters()
        gradients.append({name: parameter.grad for name, parameter in blocks})
    for gradient in gradients[0].values():
        assert bool(gradient.isfinite().all())
        assert bool(gradient.any())
    torch.testing.assert_close(gradients[0], gradients[1], **EXACT)


def test_another_way_to_unmerge_is_refused() -> None:
    model = patch(make_vit())
    with pytest.raises(ValueError, match="unmerge='mean' is not known; there are copy, residual"):
        model.intermediates(make_images(1), unmerge="mean")  # type: ignore[arg-type]
