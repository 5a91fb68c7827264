"""What `patch` copies and what it shares: modules and their flags, weights, state dicts."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

from tests.tome_core.models import VARIANTS, make_images, make_vit
from tome_core import MergedViT, patch


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("training", [True, False])
def test_the_given_model_is_untouched(training: bool) -> None:
    vit = make_vit(drop_path_rate=0.2).train(training)
    images = make_images(2)
    modules = [
        (name, type(module), set(vars(module)), module.training)
        for name, module in vit.named_modules()
    ]
    state = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    torch.manual_seed(0)
    expected = vit(images)
    model = patch(vit)
    assert model.training == training
    model.train(not training)
    model(images, r=3)
    assert [
        (name, type(module), set(vars(module)), module.training)
        for name, module in vit.named_modules()
    ] == modules
    assert all(torch.equal(tensor, state[name]) for name, tensor in vit.state_dict().items())
    torch.manual_seed(0)
    assert torch.equal(vit(images), expected)


def test_the_training_mode_of_the_copy_is_its_own() -> None:
    vit = make_vit(drop_path_rate=0.5, proj_drop_rate=0.5)
    model = patch(vit)
    assert not model.training
    model.train()
    assert not any(module.training for module in vit.modules())
    assert all(module.training for module in model.modules())
    images = make_images(2)
    assert not torch.equal(model(images, r=3), model(images, r=3))
    model.eval()
    assert torch.equal(model(images, r=3), model(images, r=3))


def test_a_model_can_be_patched_twice() -> None:
    vit = make_vit()
    images = make_images(2)
    first = patch(vit)
    second = patch(vit, prop_attn=False)
    assert_equal(first(images, r=4), patch(vit)(images, r=4), 0)
    assert not torch.allclose(first(images, r=4), second(images, r=4))
    assert_equal(first(images), second(images), 0)


@pytest.mark.parametrize("variant", ["registers", "distilled", "layer-scale", "gated"])
def test_weights_are_shared_under_the_same_names(variant: str) -> None:
    vit = make_vit(**VARIANTS[variant])
    model = patch(vit)
    state = vit.state_dict()
    assert list(model.state_dict()) == list(state)
    assert all(
        tensor.data_ptr() == state[name].data_ptr() for name, tensor in model.state_dict().items()
    )
    assert [id(p) for p in model.parameters()] == [id(p) for p in vit.parameters()]
    # An update of the original is an update of the merged one, and back.
    images = make_images(1)
    before = model(images, r=3)
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight.mul_(1.5)
    assert not torch.allclose(model(images, r=3), before)
    other = make_vit(seed=1, **VARIANTS[variant])
    model.load_state_dict(other.state_dict())
    assert_equal(vit(images), other(images), 0)


@pytest.mark.parametrize("variant", ["registers", "distilled"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_work_and_are_independent(variant: str, how: str) -> None:
    model = patch(make_vit(**VARIANTS[variant]))
    images = make_images(2)
    expected = model(images, r=[0, 3])
    if how == "deepcopy":
        other: MergedViT = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert torch.equal(other(images, r=[0, 3]), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images, r=[0, 3]), expected)
    assert not torch.equal(other(images, r=[0, 3]), expected)
    other.train()
    assert not model.training


def test_a_change_of_dtype_reaches_all_parts() -> None:
    model = patch(make_vit(**VARIANTS["registers"])).to(torch.float32)
    images = make_images(2, dtype=torch.float32)
    assert model(images, r=[0, 3]).dtype == torch.float32
    assert_equal(
        model(images, r=3),
        patch(make_vit(dtype=torch.float32, **VARIANTS["registers"]))(images, r=3),
        1e-5,
    )


def test_swapped_parameters_are_used() -> None:
    vit = make_vit(0)
    other = make_vit(1)
    images = make_images(2)
    swapped = torch.func.functional_call(
        patch(vit), dict(other.named_parameters()), (images,), {"r": 2}
    )
    torch.testing.assert_close(swapped, patch(other)(images, r=2))
    model = patch(make_vit(0))
    model.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(model(images, r=2), patch(other)(images, r=2))
    torch.testing.assert_close(copy.deepcopy(model)(images, r=2), patch(other)(images, r=2))
