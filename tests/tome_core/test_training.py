"""Training with merging: gradients, dropout, stochastic depth, gradient checkpointing."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from tests.tome_core.models import make_images, make_vit
from tome_core import Schedule, patch

R = pytest.mark.parametrize("r", [0, 3, [0, 3, Schedule.linear(2, -1), 3]])
REGULARISED = {
    "drop_path_rate": 0.3,
    "attn_drop_rate": 0.2,
    "proj_drop_rate": 0.2,
    "drop_rate": 0.1,
    "pos_drop_rate": 0.1,
    "init_values": 0.5,
    "reg_tokens": 2,
}


def _gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@R
@pytest.mark.parametrize(
    "options", [REGULARISED, {**REGULARISED, "qk_norm": True, "global_pool": "avg"}]
)
def test_every_parameter_gets_a_finite_gradient(options: dict[str, Any], r: Any) -> None:
    torch.manual_seed(0)
    model = patch(make_vit(dtype=torch.float32, **options)).train()
    gradients = _gradients(model, model(make_images(4, dtype=torch.float32), r=r).square().sum())
    assert set(gradients) == {name for name, _ in model.named_parameters()}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert sum(float(gradient.abs().sum()) > 0 for gradient in gradients.values()) > 0.9 * len(
        gradients
    )


def test_patch_dropout_in_training() -> None:
    model = patch(make_vit(patch_drop_rate=0.5)).train()
    trace = model.trace(make_images(3), r=[0, 2, 4])
    assert trace.source.shape == (3, 9)
    assert [float(sizes.sum()) for sizes in trace.sizes] == [9, 9, 9]


@R
def test_gradients_of_a_batch_are_the_sum_of_its_images(r: Any) -> None:
    model = patch(make_vit())
    images = make_images(4)
    together = _gradients(model, model(images, r=r).square().sum())
    single = [r] * 4 if isinstance(r, int) else r
    losses = [model(images[at : at + 1], r=single[at]).square().sum() for at in range(4)]
    torch.testing.assert_close(
        together, _gradients(model, torch.stack(losses).sum()), rtol=1e-9, atol=1e-9
    )


def test_the_gradient_is_the_right_one() -> None:
    # The matching is piecewise constant, so away from its edges finite differences must agree.
    model = patch(make_vit(depth=2, img_size=8, embed_dim=8))
    images = make_images(2, (8, 8)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images: model(images, r=[1, 2]), (images,), fast_mode=True
    )


@R
def test_gradient_through_unmerged_tokens(r: Any) -> None:
    model = patch(make_vit())
    images = make_images(4).requires_grad_()
    dense = model.trace(images, r=r).unmerge()
    assert dense.shape == (4, 17, 16)
    gradients = _gradients(model, dense[:, 1:].square().sum())
    assert bool(gradients["blocks.0.mlp.fc1.weight"].abs().sum() > 0)
    assert images.grad is not None and bool((images.grad.flatten(1).abs().sum(dim=1) > 0).all())


@R
@pytest.mark.parametrize("options", [{}, REGULARISED])
def test_gradient_checkpointing_gives_the_same_gradients(options: dict[str, Any], r: Any) -> None:
    images = make_images(4)
    results = []
    saved = []
    for enable in (False, True):
        vit = make_vit(**options)
        vit.set_grad_checkpointing(enable)
        model = patch(vit).train()
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(images, r=r).square().sum()
        saved.append(kept)
        results.append(_gradients(model, loss))
    assert saved[1] < saved[0] / 2
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("r", [0, [0, 4, 0, 4, 0, 4, 0, 4]])
def test_stochastic_depth_drops_whole_images(r: Any) -> None:
    vit = make_vit(depth=1)
    block = vit.blocks[0]
    images = make_images(8)
    with torch.no_grad():
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        outcomes = []
        for attention, mlp in itertools.product((0.0, 2.0), repeat=2):
            after = x + attention * block.attn(block.norm1(x))
            outcomes.append(vit.norm(after + mlp * block.mlp(block.norm2(after))))
        block.drop_path1 = DropPath(0.5)
        block.drop_path2 = DropPath(0.5)
        model = patch(vit).train()
        torch.manual_seed(0)
        seen = set()
        for _ in range(4):
            tokens = model.trace(images, r=r).tokens
            for at in range(0, 8, 2):
                matching = [
                    n
                    for n, outcome in enumerate(outcomes)
                    if torch.allclose(outcome[at], tokens[at])
                ]
                assert len(matching) == 1
                seen.add(matching[0])
    assert seen == {0, 1, 2, 3}


def test_distilled_training_gives_both_heads() -> None:
    vit = make_vit(distilled=True)
    vit.set_distilled_training()
    model = patch(vit)
    images = make_images(3)
    assert isinstance(model(images, r=2), Tensor)
    model.train()
    first, second = model(images, r=[0, 2, 2])
    assert first.shape == second.shape == (3, 5)
    expected = vit.train()(images[:1])
    torch.testing.assert_close(
        (first[0], second[0]), (expected[0][0], expected[1][0]), rtol=1e-10, atol=1e-10
    )


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = patch(make_vit(dtype=torch.float32)).train()
    images = make_images(8, dtype=torch.float32)
    labels = torch.arange(8) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(images, r=[0, 1, 2, 3, 4, 5, 6, 7]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
