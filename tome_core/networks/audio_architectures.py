"""The sizes of the Audio Spectrogram Transformer, as architectures of timm.

They take spectrograms ``(1, 128 mel bins, 1024 frames)`` in patches of 16x16 with a stride of 10,
and have the classes of AudioSet. ``img_size``, ``patch_size``, ``stride`` and ``num_classes``
change that. timm knows them once this module is imported.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from tome_core.networks.spectrogram_vit import SpectrogramViT

AUDIOSET_CLASSES = 527
AST_ARCHITECTURES = ("ast_tiny_patch16", "ast_small_patch16", "ast_base_patch16")
_CONFIG = {
    "num_classes": AUDIOSET_CLASSES,
    "input_size": (1, 128, 1024),
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
default_cfgs = generate_default_cfgs({name: dict(_CONFIG) for name in AST_ARCHITECTURES})


@register_model  # type: ignore[untyped-decorator]
def ast_tiny_patch16(pretrained: bool = False, **options: Any) -> SpectrogramViT:
    """AST of the size of DeiT-Ti."""
    return _create("ast_tiny_patch16", pretrained, {"embed_dim": 192, "num_heads": 3, **options})


@register_model  # type: ignore[untyped-decorator]
def ast_small_patch16(pretrained: bool = False, **options: Any) -> SpectrogramViT:
    """AST of the size of DeiT-S."""
    return _create("ast_small_patch16", pretrained, {"embed_dim": 384, "num_heads": 6, **options})


@register_model  # type: ignore[untyped-decorator]
def ast_base_patch16(pretrained: bool = False, **options: Any) -> SpectrogramViT:
    """AST of the size of DeiT-B, that of the published models."""
    return _create("ast_base_patch16", pretrained, {"embed_dim": 768, "num_heads": 12, **options})


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> SpectrogramViT:
    arguments = {"img_size": (128, 1024), "patch_size": 16, **options}
    network: SpectrogramViT = build_model_with_cfg(SpectrogramViT, name, pretrained, **arguments)
    return network
