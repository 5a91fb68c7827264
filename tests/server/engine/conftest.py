"""A tiny model on disk, loaded once: 2 blocks, 32 pixels, 17 tokens."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from server.catalog import read_catalog
from server.engine.loading import LoadedModel, load_model
from server.engine.runner import Runner

ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
TABLE = """
[[models]]
name = "tiny"
timm = "vit_tiny_patch16_224"
checkpoint = "tiny.safetensors"
labels = "labels.txt"
img_size = 32
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
interpolation = "bilinear"
crop_pct = 1.0
model_args = { patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
"""


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", **ARGUMENTS)
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(vit.state_dict(), folder / "tiny.safetensors")
    torch.save({"model": vit.state_dict()}, folder / "tiny.pth")
    (folder / "labels.txt").write_text("cat\ndog\nfish\n")
    (folder / "models.toml").write_text(TABLE)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LoadedModel:
    (spec,) = read_catalog(tiny_folder / "models.toml", ())
    return load_model(spec, torch.device("cpu"), torch.float32)


@pytest.fixture
def runner(tiny: LoadedModel) -> Runner:
    return Runner(tiny, torch.device("cpu"))
