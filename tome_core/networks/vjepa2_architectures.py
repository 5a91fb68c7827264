"""The sizes of V-JEPA 2, as architectures of timm.

They are its encoders: clips of 64 frames ``(3, 64 * 256, 256)`` or ``(3, 64 * 384, 384)`` in
tubelets of 2x16x16, and no classes. ``num_classes`` adds the attentive pooler and a classifier;
``img_size`` and ``frames`` change the clip. timm knows them once this module is imported.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tome_core.networks.vjepa2 import VJepa2

VJEPA2_ARCHITECTURES = (
    "vjepa2_vit_large_patch16_256",
    "vjepa2_vit_huge_patch16_256",
    "vjepa2_vit_giant_patch16_256",
    "vjepa2_vit_giant_patch16_384",
)


def _config(side: int) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": (3, side, side),
        "crop_pct": 224 / 256,
        "interpolation": "bilinear",
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }


default_cfgs = generate_default_cfgs(
    {name: _config(int(name.rpartition("_")[2])) for name in VJEPA2_ARCHITECTURES}
)


@register_model  # type: ignore[untyped-decorator]
def vjepa2_vit_large_patch16_256(pretrained: bool = False, **options: Any) -> VJepa2:
    """1,024 wide, 24 blocks, clips of 256x256 pixels."""
    return _create("vjepa2_vit_large_patch16_256", pretrained, (1024, 24, 16, 4.0), options)


@register_model  # type: ignore[untyped-decorator]
def vjepa2_vit_huge_patch16_256(pretrained: bool = False, **options: Any) -> VJepa2:
    """1,280 wide, 32 blocks, clips of 256x256 pixels."""
    return _create("vjepa2_vit_huge_patch16_256", pretrained, (1280, 32, 16, 4.0), options)


@register_model  # type: ignore[untyped-decorator]
def vjepa2_vit_giant_patch16_256(pretrained: bool = False, **options: Any) -> VJepa2:
    """1,408 wide, 40 blocks, clips of 256x256 pixels."""
    return _create("vjepa2_vit_giant_patch16_256", pretrained, (1408, 40, 22, 48 / 11), options)


@register_model  # type: ignore[untyped-decorator]
def vjepa2_vit_giant_patch16_384(pretrained: bool = False, **options: Any) -> VJepa2:
    """1,408 wide, 40 blocks, clips of 384x384 pixels."""
    return _create("vjepa2_vit_giant_patch16_384", pretrained, (1408, 40, 22, 48 / 11), options)


def _create(
    name: str,
    pretrained: bool,
    sizes: tuple[int, int, int, float],
    options: dict[str, Any],
) -> VJepa2:
    """Return the model of ``sizes``: width, blocks, heads, and the ratio of the MLPs."""
    width, depth, heads, mlp_ratio = sizes
    side = default_cfgs[name].default.input_size[1]
    arguments = {
        "img_size": side,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio,
        **options,
    }
    network: VJepa2 = build_model_with_cfg(VJepa2, name, pretrained, **arguments)
    return network
