"""The sizes of ViTs of video, as architectures of timm.

They take clips of 16 frames ``(3, 16 * 224, 224)`` in tubelets of 2x16x16 and have the classes of
Kinetics-400, as VideoMAE has them. ``img_size``, ``frames``, ``tubelet``, ``patch_size``,
``class_token``, ``global_pool`` and ``num_classes`` change that. timm knows them once this module
is imported.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tome_core.networks.video_vit import VideoViT

KINETICS_CLASSES = 400
VIDEO_ARCHITECTURES = (
    "video_vit_tiny_patch16",
    "video_vit_small_patch16",
    "video_vit_base_patch16",
    "video_vit_large_patch16",
    "video_vit_huge_patch16",
)
_CONFIG = {
    "num_classes": KINETICS_CLASSES,
    "input_size": (3, 224, 224),
    "crop_pct": 224 / 256,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in VIDEO_ARCHITECTURES})


@register_model  # type: ignore[untyped-decorator]
def video_vit_tiny_patch16(pretrained: bool = False, **options: Any) -> VideoViT:
    """192 wide, 12 blocks."""
    return _create("video_vit_tiny_patch16", pretrained, 192, 12, 3, options)


@register_model  # type: ignore[untyped-decorator]
def video_vit_small_patch16(pretrained: bool = False, **options: Any) -> VideoViT:
    """384 wide, 12 blocks: VideoMAE-S."""
    return _create("video_vit_small_patch16", pretrained, 384, 12, 6, options)


@register_model  # type: ignore[untyped-decorator]
def video_vit_base_patch16(pretrained: bool = False, **options: Any) -> VideoViT:
    """768 wide, 12 blocks: VideoMAE-B, ViViT-B."""
    return _create("video_vit_base_patch16", pretrained, 768, 12, 12, options)


@register_model  # type: ignore[untyped-decorator]
def video_vit_large_patch16(pretrained: bool = False, **options: Any) -> VideoViT:
    """1,024 wide, 24 blocks: VideoMAE-L, MAE-ST ViT-L."""
    return _create("video_vit_large_patch16", pretrained, 1024, 24, 16, options)


@register_model  # type: ignore[untyped-decorator]
def video_vit_huge_patch16(pretrained: bool = False, **options: Any) -> VideoViT:
    """1,280 wide, 32 blocks: VideoMAE-H."""
    return _create("video_vit_huge_patch16", pretrained, 1280, 32, 16, options)


def _create(
    name: str,
    pretrained: bool,
    width: int,
    depth: int,
    heads: int,
    options: dict[str, Any],
) -> VideoViT:
    arguments = {"embed_dim": width, "depth": depth, "num_heads": heads, **options}
    network: VideoViT = build_model_with_cfg(VideoViT, name, pretrained, **arguments)
    return network
