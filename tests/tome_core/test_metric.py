"""Metrics and ways to combine tokens: the defaults are those of the paper, and others may replace
them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tome_core
from tests.tome_core.models import DEPTH, make_images, make_vit
from tome_core.matching import Bipartite, Matching
from tome_core.merge import weighted_mean
from tome_core.metric import BlockTensors, mean_key


def test_models_merge_by_the_papers_choices() -> None:
    model = tome_core.patch(make_vit())
    for merging in (model.merging, tome_core.optimize(model).merging):
        assert merging.matcher == Bipartite()
        assert merging.metric is mean_key
        assert merging.combine is weighted_mean


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_the_mean_key_of_all_tokens_is_that_of_each_image_to_the_bit(
    dtype: torch.dtype, heads: int
) -> None:
    # Keys are a slice of one buffer, as layers give them.
    buffer = torch.randn(4 * 17, 3, heads, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    q, k, v = buffer.unbind(1)
    metric = mean_key(BlockTensors(q, q, q, k, v))
    assert metric.dtype == torch.promote_types(dtype, torch.float32)
    for image in range(4):
        dense = k[17 * image : 17 * (image + 1)].unsqueeze(0).to(metric.dtype).mean(dim=2)
        assert torch.equal(metric[17 * image : 17 * (image + 1)].unsqueeze(0), dense)


def test_a_metric_is_given_what_the_block_computed() -> None:
    vit = make_vit(qk_norm=True)
    images = make_images(2)
    model = tome_core.patch(vit)
    seen: list[BlockTensors] = []

    def record(features: BlockTensors) -> Tensor:
        seen.append(features)
        return mean_key(features)

    model.merging = replace(model.merging, metric=record)
    model(images, r=[0, 3])
    assert len(seen) == DEPTH
    block = vit.blocks[0]
    before = vit._pos_embed(vit.patch_embed(images))
    features = seen[0]
    torch.testing.assert_close(features.before, before.flatten(0, 1))
    torch.testing.assert_close(
        features.after, (before + block.attn(block.norm1(before))).flatten(0, 1)
    )
    qkv = block.attn.qkv(block.norm1(before)).flatten(0, 1).unflatten(-1, (3, 2, 8)).unbind(1)
    torch.testing.assert_close(features.q, block.attn.q_norm(qkv[0]))
    torch.testing.assert_close(features.k, block.attn.k_norm(qkv[1]))
    torch.testing.assert_close(features.v, qkv[2])


def test_a_metric_of_any_shape_reaches_the_matcher_image_by_image() -> None:
    shapes = []

    class Probe(Bipartite):
        def __call__(self, metric: Tensor, r: int, prefix: int) -> Matching:
            shapes.append(tuple(metric.shape))
            return super().__call__(metric[..., 0], r, prefix)

    model = tome_core.patch(make_vit(), matcher=Probe())
    model.merging = replace(
        model.merging, metric=lambda features: torch.stack([mean_key(features)] * 5, dim=-1)
    )
    expected = tome_core.patch(make_vit())(make_images(3), r=[4, 2, 4])
    torch.testing.assert_close(model(make_images(3), r=[4, 2, 4]), expected, rtol=0, atol=0)
    assert shapes[:2] == [(1, 17, 8, 5), (2, 17, 8, 5)]


def test_combining_is_given_the_matching_and_sizes_so_far() -> None:
    model = tome_core.patch(make_vit())
    seen: list[Tensor] = []

    def record(
        tokens: Tensor, sizes: Tensor, matching: Matching, length: int
    ) -> tuple[Tensor, Tensor]:
        seen.append(sizes)
        assert int((~matching.merged).sum(dim=1)[0]) == length
        return weighted_mean(tokens, sizes, matching, length)

    model.merging = replace(model.merging, combine=record)
    sizes = model.trace(make_images(2), r=4).sizes
    assert isinstance(sizes, Tensor)
    for image in (0, 1):
        assert [int(step[image].sum()) for step in seen] == [17] * len(seen)
        assert int(seen[0][image].max()) == 1 < int(sizes[image].max())
