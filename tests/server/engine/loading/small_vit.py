"""Small models of timm, and of the published formats that they load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from torch import nn
from torchvision.models import VisionTransformer

from tests.server.engine.loading.published import CLASSES, DEPTH, HEADS, PATCH, WIDTH, Original

VIT = "vit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
DEIT3 = "deit3_small_patch16_224"
DINOV2 = "vit_small_patch14_dinov2"
DINOV2_REGISTERS = "vit_small_patch14_reg4_dinov2"
DINOV2_GIANT = "vit_giant_patch14_dinov2"

# Arguments that make any of these architectures small.
SIZES = {
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
}


def create_timm(name: str, **arguments: Any) -> Any:
    """Create a small timm model for 32 pixels, unless ``arguments`` say otherwise."""
    defaults = {**SIZES, "num_classes": CLASSES, "img_size": 32}
    return timm.create_model(name, **(defaults | arguments)).eval()


def save(model: nn.Module, path: Path) -> Path:
    state_dict = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state_dict, path)
    return path


def make_deit(size: int = 32) -> nn.Module:
    return Original((size, size))


def make_distilled(size: int = 32) -> nn.Module:
    return Original((size, size), distilled=True)


def make_deit3(size: int = 32) -> nn.Module:
    return Original((size, size), layer_scale="gamma", class_position=False)


def make_mae(size: int = 32) -> nn.Module:
    return Original((size, size), average_pool=True)


def make_dinov2(size: int = 32, **options: Any) -> nn.Module:
    return Original((size, size), mask_token=True, layer_scale="ls", **options)


def make_dinov2_registers(size: int = 32) -> nn.Module:
    return make_dinov2(size, registers=4)


def make_dinov2_giant(size: int = 32) -> nn.Module:
    return make_dinov2(size, swiglu=True)


def make_torchvision(size: int = 32) -> nn.Module:
    return VisionTransformer(
        image_size=size,
        patch_size=PATCH,
        num_layers=DEPTH,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
        num_classes=CLASSES,
    )
