"""Names and shapes at full size, on the meta device: no weight is allocated."""

from typing import Any

import pytest
import timm
import torch
import torchvision

from server.engine.loading.key_names import name_in_timm, names_in_file, to_timm


def shapes(state: dict[str, Any]) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in state.items()}


def timm_vit(name: str) -> Any:
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
def test_torchvision_s_models_are_timm_s(build: Any, name: str) -> None:
    with torch.device("meta"):
        state = build().state_dict()
    assert shapes(to_timm(state)) == shapes(timm_vit(name))
    assert set(names_in_file(state).values()) == set(state)


def test_swag_counts_tokens_first_and_names_layers() -> None:
    """The names of ``vit_b16_in1k`` in SWAG's repository, 384 pixels."""
    state = {
        "class_token": torch.empty(1, 1, 768, device="meta"),
        "conv_proj.weight": torch.empty(768, 3, 16, 16, device="meta"),
        "conv_proj.bias": torch.empty(768, device="meta"),
        "encoder.pos_embedding": torch.empty(577, 1, 768, device="meta"),
        "encoder.ln.weight": torch.empty(768, device="meta"),
        "encoder.ln.bias": torch.empty(768, device="meta"),
        "head.layers.head.weight": torch.empty(1000, 768, device="meta"),
        "head.layers.head.bias": torch.empty(1000, device="meta"),
    }
    layer = {
        **{f"ln_{i}.{part}": (768,) for i in (1, 2) for part in ("weight", "bias")},
        "self_attention.in_proj_weight": (2304, 768),
        "self_attention.in_proj_bias": (2304,),
        "self_attention.out_proj.weight": (768, 768),
        "self_attention.out_proj.bias": (768,),
        "mlp.linear_1.weight": (3072, 768),
        "mlp.linear_1.bias": (3072,),
        "mlp.linear_2.weight": (768, 3072),
        "mlp.linear_2.bias": (768,),
    }
    for index in range(12):
        for key, shape in layer.items():
            state[f"encoder.layers.layer_{index}.{key}"] = torch.empty(shape, device="meta")
    assert shapes(to_timm(state)) == shapes(timm_vit("vit_base_patch16_384"))


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
    state = timm_vit(name)
    assert to_timm(state) == state
    assert names_in_file(state) == {}
    assert [name_in_timm(key) for key in state] == list(state)


def test_the_decoder_of_mae_is_dropped_and_nothing_else() -> None:
    encoder = timm_vit("vit_base_patch16_224")
    decoder = {
        key: torch.empty(1) for key in ("mask_token", "decoder_pos_embed", "decoder_embed.weight")
    }
    assert to_timm(encoder | decoder) == encoder
    assert to_timm({"mask_token": torch.empty(1)}).keys() == {
        "mask_token"
    }  # DINOv2's: timm's filter tells by it
