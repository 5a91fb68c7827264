"""Key names and shapes of full-size models, on the meta device: no weight is allocated."""

from typing import Any

import pytest
import timm
import torch
import torchvision

from server.engine.loading.key_names import name_in_timm, names_in_file, to_timm

Shapes = dict[str, tuple[int, ...]]


def shapes(state_dict: dict[str, Any]) -> Shapes:
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def timm_state_dict(name: str) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=1000).state_dict()


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (torchvision.models.vit_b_16, "vit_base_patch16_224"),
        (torchvision.models.vit_l_16, "vit_large_patch16_224"),
        (torchvision.models.vit_h_14, "vit_huge_patch14_224"),
    ],
)
def test_torchvision_s_names_become_timm_s(build: Any, name: str) -> None:
    with torch.device("meta"):
        state_dict = build().state_dict()
    assert shapes(to_timm(state_dict)) == shapes(timm_state_dict(name))
    assert set(names_in_file(state_dict).values()) == set(state_dict)


# The names of ``vit_b16_in1k`` in SWAG's repository, for 384 pixels.
SWAG: Shapes = {
    "class_token": (1, 1, 768),
    "conv_proj.weight": (768, 3, 16, 16),
    "conv_proj.bias": (768,),
    "encoder.pos_embedding": (577, 1, 768),
    "encoder.ln.weight": (768,),
    "encoder.ln.bias": (768,),
    "head.layers.head.weight": (1000, 768),
    "head.layers.head.bias": (1000,),
}
SWAG_BLOCK: Shapes = {
    "ln_1.weight": (768,),
    "ln_1.bias": (768,),
    "ln_2.weight": (768,),
    "ln_2.bias": (768,),
    "self_attention.in_proj_weight": (2304, 768),
    "self_attention.in_proj_bias": (2304,),
    "self_attention.out_proj.weight": (768, 768),
    "self_attention.out_proj.bias": (768,),
    "mlp.linear_1.weight": (3072, 768),
    "mlp.linear_1.bias": (3072,),
    "mlp.linear_2.weight": (768, 3072),
    "mlp.linear_2.bias": (768,),
}


def test_swag_s_names_become_timm_s() -> None:
    swag_shapes = dict(SWAG)
    for index in range(12):
        for key, shape in SWAG_BLOCK.items():
            swag_shapes[f"encoder.layers.layer_{index}.{key}"] = shape
    state_dict = {key: torch.empty(shape, device="meta") for key, shape in swag_shapes.items()}
    expected = timm_state_dict("vit_base_patch16_384")
    assert shapes(to_timm(state_dict)) == shapes(expected)


@pytest.mark.parametrize(
    "name",
    [
        "vit_base_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "eva02_tiny_patch14_224",
    ],
)
def test_timm_s_own_names_stay(name: str) -> None:
    state_dict = timm_state_dict(name)
    assert to_timm(state_dict) == state_dict
    assert names_in_file(state_dict) == {}
    assert [name_in_timm(key) for key in state_dict] == list(state_dict)


def test_the_decoder_of_mae_is_left_out() -> None:
    encoder = timm_state_dict("vit_base_patch16_224")
    decoder = {
        "mask_token": torch.empty(1),
        "decoder_pos_embed": torch.empty(1),
        "decoder_embed.weight": torch.empty(1),
    }
    assert to_timm(encoder | decoder) == encoder


def test_the_mask_token_of_dinov2_stays() -> None:
    """timm's filter recognises DINOv2 by it."""
    assert to_timm({"mask_token": torch.empty(1)}).keys() == {"mask_token"}
