"""AST by its names in timm."""

from __future__ import annotations

import pytest
import timm
import torch

import tome_core
from tome_core.networks.audio_architectures import AST_ARCHITECTURES, AUDIOSET_CLASSES

transformers = pytest.importorskip("transformers")


def parameters(network: torch.nn.Module) -> int:
    return sum(one.numel() for one in network.parameters())


@pytest.mark.parametrize("name", AST_ARCHITECTURES)
def test_timm_creates_it_by_name_and_merging_supports_it(name: str) -> None:
    with torch.device("meta"):
        vit = timm.create_model(name)
    assert vit.num_classes == AUDIOSET_CLASSES
    assert vit.patch_embed.grid_size == (12, 101)
    assert vit.fc_norm.eps == 1e-5
    assert vit.norm.eps == 1e-6
    assert tome_core.patch(vit).merging.prefix == 2


def test_the_base_model_has_the_sizes_of_transformers() -> None:
    config = transformers.ASTConfig(num_labels=AUDIOSET_CLASSES)
    with torch.device("meta"):
        theirs = transformers.ASTForAudioClassification(config)
        vit = timm.create_model("ast_base_patch16")
        small = timm.create_model(
            "ast_small_patch16", img_size=(128, 512), num_classes=50, stride=16
        )
    assert parameters(vit) == parameters(theirs)
    assert small.pos_embed.shape == (1, 2 + 8 * 32, 384)
