"""Files of each published format give the logits of a reference that does not use timm."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from server.catalog.entries import read_catalog
from server.engine.loading.model_loader import load_model
from server.engine.loading.weights import load_weights
from server.media.transforms import ImageTransform
from tests.server.engine.loading.published import (
    CLASSES,
    DEPTH,
    HEADS,
    WIDTH,
    Original,
    Swag,
    randomise,
)
from tests.server.engine.loading.small_vit import (
    DEIT3,
    DINOV2,
    DINOV2_GIANT,
    DINOV2_REGISTERS,
    DISTILLED,
    SIZES,
    VIT,
    create_timm,
    make_deit,
    make_deit3,
    make_dinov2,
    make_dinov2_giant,
    make_dinov2_registers,
    make_distilled,
    make_mae,
    make_torchvision,
    save,
)

StateDict = dict[str, Tensor]


class Format(NamedTuple):
    """A published format, and timm's architecture and ``model_args`` for it."""

    make: Callable[..., nn.Module]
    timm: str
    model_args: dict[str, Any] = {}  # noqa: RUF012, never changed


FORMATS = {
    "deit": Format(make_deit, "deit_tiny_patch16_224"),
    "deit-distilled": Format(make_distilled, DISTILLED),
    "deit3": Format(make_deit3, DEIT3),
    "mae": Format(make_mae, VIT, {"global_pool": "avg"}),
    "dinov2": Format(make_dinov2, DINOV2),
    "dinov2-registers": Format(make_dinov2_registers, DINOV2_REGISTERS),
    "dinov2-giant": Format(make_dinov2_giant, DINOV2_GIANT, {"mlp_ratio": 4}),
    "swag": Format(Swag, VIT),
    "torchvision": Format(make_torchvision, VIT),
}
EVERY_FORMAT = pytest.mark.parametrize("published", FORMATS.values(), ids=FORMATS)


def assert_same_logits(
    vit: nn.Module,
    reference: nn.Module,
    image_shape: tuple[int, int, int] = (3, 32, 32),
) -> None:
    images = torch.randn(2, *image_shape, dtype=torch.float64)
    with torch.inference_mode():
        logits = vit.double()(images)
        expected = reference.double()(images)
    # The files hold float32, and timm resizes and adds positions in it.
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@EVERY_FORMAT
def test_a_published_format_gives_its_authors_logits(
    tmp_path: Path,
    published: Format,
) -> None:
    reference = randomise(published.make())
    vit = create_timm(published.timm, **published.model_args)
    load_weights(vit, save(reference, tmp_path / "w.safetensors"))
    assert_same_logits(vit, reference)


@EVERY_FORMAT
def test_position_embeddings_are_resized_to_the_entry_s_image(
    tmp_path: Path,
    published: Format,
) -> None:
    larger = randomise(published.make(48))
    reference = randomise(published.make(32))
    vit = create_timm(published.timm, **published.model_args)
    load_weights(vit, save(larger, tmp_path / "w.safetensors"))
    state_dict = larger.state_dict()
    key = "pos_embed" if "pos_embed" in state_dict else "encoder.pos_embedding"
    shape = reference.state_dict()[key].shape
    state_dict[key] = resize_positions(state_dict[key], shape)
    reference.load_state_dict(state_dict)
    assert_same_logits(vit, reference)


def resize_positions(positions: Tensor, shape: torch.Size) -> Tensor:
    """Resize a 6x6 grid to 4x4, without the positions of the prefix tokens before it."""
    flat = positions.reshape(-1, WIDTH)
    prefix = flat[:-36]
    grid = flat[-36:].reshape(1, 6, 6, WIDTH)
    channels_first = grid.permute(0, 3, 1, 2)
    resized = F.interpolate(
        channels_first,
        size=(4, 4),
        mode="bicubic",
        antialias=True,
    )
    patches = resized.flatten(2)[0].T
    return torch.cat([prefix, patches]).reshape(shape)


def add_prefix(prefix: str, state_dict: StateDict) -> StateDict:
    return {f"{prefix}{key}": value for key, value in state_dict.items()}


def wrap_deit(state_dict: StateDict) -> Any:
    return {
        "model": state_dict,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {}},
    }


def wrap_lightning(state_dict: StateDict) -> Any:
    return {"state_dict": add_prefix("model.", state_dict)}


def wrap_ddp(state_dict: StateDict) -> Any:
    return {"state_dict": add_prefix("module.", state_dict), "arch": "vit"}


def wrap_compiled(state_dict: StateDict) -> Any:
    return add_prefix("_orig_mod.module.", state_dict)


def wrap_averaged(state_dict: StateDict) -> Any:
    zeros = {key: torch.zeros_like(value) for key, value in state_dict.items()}
    return {"model": zeros, "model_ema": state_dict}


def wrap_without_average(state_dict: StateDict) -> Any:
    return {"state_dict_ema": None, "state_dict": state_dict}


def wrap_twice(state_dict: StateDict) -> Any:
    return {"model": {"state_dict": state_dict}}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        wrap_deit,
        wrap_lightning,
        wrap_ddp,
        wrap_compiled,
        wrap_averaged,
        wrap_without_average,
        wrap_twice,
    ],
)
def test_the_wrappers_of_training_scripts_are_removed(
    tmp_path: Path,
    wrap: Callable[[StateDict], Any],
    legacy: bool,
) -> None:
    reference = randomise(Original())
    path = tmp_path / "w.bin"
    content = wrap(reference.state_dict())
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    vit = create_timm(VIT)
    load_weights(vit, path)
    assert_same_logits(vit, reference)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_weights_in_float16_load(tmp_path: Path, legacy: bool) -> None:
    reference = randomise(Original()).half().float()
    path = tmp_path / "w.bin"
    content = {key: value.half() for key, value in reference.state_dict().items()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    vit = create_timm(VIT)
    load_weights(vit, path)
    assert_same_logits(vit, reference)


def test_the_decoder_of_mae_s_pre_training_is_left_out(tmp_path: Path) -> None:
    encoder = create_timm(VIT, num_classes=0)
    decoder = {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_pos_embed": torch.zeros(1, 17, 16),
        "decoder_embed.weight": torch.zeros(16, WIDTH),
        "decoder_embed.bias": torch.zeros(16),
        "decoder_blocks.0.norm1.weight": torch.zeros(16),
        "decoder_pred.bias": torch.zeros(192),
    }
    path = tmp_path / "mae_pretrain.pth"
    torch.save({"model": encoder.state_dict() | decoder}, path)
    vit = create_timm(VIT, num_classes=0)
    load_weights(vit, path)
    assert_same_logits(vit, encoder)


def test_a_patch_embedding_is_resized_as_timm_does(tmp_path: Path) -> None:
    reference = create_timm(VIT)
    vit = create_timm(VIT, patch_size=16)
    load_weights(vit, save(reference, tmp_path / "w.safetensors"))
    weight = reference.patch_embed.proj.weight.detach()
    expected = timm.layers.resample_patch_embed(weight, [16, 16])
    torch.testing.assert_close(vit.patch_embed.proj.weight.detach(), expected)


def test_eva_s_models_use_eva_s_filter(tmp_path: Path) -> None:
    name = "eva02_tiny_patch14_224"
    arguments = {
        "img_size": 28,
        "embed_dim": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "num_classes": CLASSES,
    }
    reference = randomise(timm.create_model(name, **arguments))
    mask_token = {"mask_token": torch.zeros(1, 1, WIDTH)}
    path = tmp_path / "w.pt"
    torch.save({"module": reference.state_dict() | mask_token}, path)
    vit = timm.create_model(name, **arguments).eval()
    load_weights(vit, path)
    assert_same_logits(vit, reference, (3, 28, 28))


# AudioMAE as it is published for timm: one channel, not square, average pooling.
AUDIOMAE_CONFIG = {
    "architecture": VIT,
    "num_classes": CLASSES,
    "global_pool": "avg",
    "model_args": {**SIZES, "global_pool": "avg"},
    "pretrained_cfg": {
        "num_classes": CLASSES,
        "input_size": [1, 64, 16],
        "fixed_input_size": True,
        "mean": [0.4],
        "std": [0.3],
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    },
}
AUDIOMAE_ENTRY = """
[[models]]
name = "audio"
timm = "local-dir:audiomae"
crop_mode = "squash"
"""


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors", "anything.pth"])
def test_a_folder_with_the_layout_of_the_hub_loads(tmp_path: Path, weights: str) -> None:
    reference = randomise(Original((64, 16), channels=1, average_pool=True))
    folder = tmp_path / "audiomae"
    folder.mkdir()
    config = json.dumps(AUDIOMAE_CONFIG)
    (folder / "config.json").write_text(config)
    if weights.endswith(".safetensors"):
        save(reference, folder / weights)
    else:
        torch.save(reference.state_dict(), folder / weights)
    models_file = tmp_path / "models.toml"
    models_file.write_text(AUDIOMAE_ENTRY)
    (spec,) = read_catalog(models_file, ())
    model = load_model(spec, torch.device("cpu"), torch.float32)
    assert model.transform.size == (1, 64, 16)
    assert isinstance(model.transform, ImageTransform)
    assert model.transform.crop_mode == "squash"
    assert model.mean == (0.4,)
    assert model.tokens == 17
    assert len(model.labels) == CLASSES
    images = torch.randn(2, 1, 64, 16)
    with torch.inference_mode():
        logits = model.network(images, r=0)
        expected = reference(images)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
