"""Files of each published format, written with their own names, against a forward pass that knows
nothing of timm.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from server.catalog.entries import ModelSpec, read_catalog
from server.engine.loading.model_loader import load_model
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from tests.server.engine.loading.published import (
    CLASSES,
    DEPTH,
    HEADS,
    PATCH,
    WIDTH,
    Original,
    Swag,
    randomise,
)

SMALL = {
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
}
PLAIN = "vit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
DINOV2 = "vit_small_patch14_dinov2"
REGISTERS = "vit_small_patch14_reg4_dinov2"
GIANT = "vit_giant_patch14_dinov2"
DINOV2_ARGUMENTS = {"num_classes": CLASSES, "img_size": 32}


def torchvision_vit(size: int = 32) -> nn.Module:
    return VisionTransformer(size, PATCH, DEPTH, HEADS, WIDTH, 4 * WIDTH, num_classes=CLASSES)


def dinov2(size: int = 32, **options: Any) -> nn.Module:
    return Original((size, size), mask_token=True, scale="ls", **options)


# Each: how its authors build it, timm's architecture, and what model_args the entry needs.
FORMATS: dict[str, tuple[Callable[..., nn.Module], str, dict[str, Any]]] = {
    "deit": (lambda size=32: Original((size, size)), "deit_tiny_patch16_224", {}),
    "deit-distilled": (lambda size=32: Original((size, size), distilled=True), DISTILLED, {}),
    "deit3": (
        lambda size=32: Original((size, size), scale="gamma", position_of_class=False),
        "deit3_small_patch16_224",
        {},
    ),
    "mae": (lambda size=32: Original((size, size), average=True), PLAIN, {"global_pool": "avg"}),
    "dinov2": (dinov2, DINOV2, {}),
    "dinov2-registers": (lambda size=32: dinov2(size, registers=4), REGISTERS, {}),
    "dinov2-giant": (lambda size=32: dinov2(size, swiglu=True), GIANT, {"mlp_ratio": 4}),
    "swag": (Swag, PLAIN, {}),
    "torchvision": (torchvision_vit, PLAIN, {}),
}


def create(name: str, **arguments: Any) -> Any:
    return timm.create_model(name, **(SMALL | {"img_size": 32} | arguments)).eval()


def save(model: nn.Module, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


def same(vit: nn.Module, reference: nn.Module, size: tuple[int, int, int] = (3, 32, 32)) -> None:
    images = torch.randn(2, *size, dtype=torch.float64)
    with torch.inference_mode():
        # The files hold float32, in which timm resizes positions and adds the class token's.
        torch.testing.assert_close(
            vit.double()(images), reference.double()(images), rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize("source", FORMATS)
def test_a_published_format_gives_its_authors_logits(tmp_path: Path, source: str) -> None:
    build, name, arguments = FORMATS[source]
    reference = randomise(build())
    vit = create(name, **arguments)
    load_weights(vit, save(reference, tmp_path / "w.safetensors"))
    same(vit, reference)


@pytest.mark.parametrize("source", FORMATS)
def test_positions_are_resized_to_the_entry_s_image(tmp_path: Path, source: str) -> None:
    build, name, arguments = FORMATS[source]
    larger = randomise(build(48))
    reference = randomise(build())
    vit = create(name, **arguments)
    load_weights(vit, save(larger, tmp_path / "w.safetensors"))
    state = larger.state_dict()
    key = next(key for key in state if key in ("pos_embed", "encoder.pos_embedding"))
    state[key] = resized(state[key], reference.state_dict()[key].shape)
    reference.load_state_dict(state)
    same(vit, reference)


def resized(positions: Tensor, shape: torch.Size) -> Tensor:
    """A 6x6 grid as 4x4, with what lies in front of it untouched."""
    flat = positions.reshape(-1, WIDTH)
    front = flat[:-36]
    grid = flat[-36:]
    image = grid.reshape(1, 6, 6, WIDTH).permute(0, 3, 1, 2)
    smaller = F.interpolate(image, size=(4, 4), mode="bicubic", antialias=True)
    return torch.cat([front, smaller.flatten(2)[0].T]).reshape(shape)


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": dict,
    "deit": lambda state: {
        "model": state,
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "optimizer": {"state": {}},
    },
    "lightning": lambda state: {
        "state_dict": {f"model.{key}": value for key, value in state.items()}
    },
    "ddp": lambda state: {
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "arch": "vit",
    },
    "compiled": lambda state: {f"_orig_mod.module.{key}": value for key, value in state.items()},
    "averaged": lambda state: {
        "model": {key: torch.zeros_like(value) for key, value in state.items()},
        "model_ema": state,
    },
    "no average": lambda state: {"state_dict_ema": None, "state_dict": state},
    "nested": lambda state: {"model": {"state_dict": state}},
    "half": lambda state: {key: value.half() for key, value in state.items()},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_training_scripts_wrap_weights_in_comes_off(
    tmp_path: Path, wrapping: str, legacy: bool
) -> None:
    reference = randomise(Original())
    if wrapping == "half":
        reference = reference.half().float()
    content = WRAPPINGS[wrapping](reference.state_dict())
    torch.save(content, tmp_path / "w.bin", _use_new_zipfile_serialization=not legacy)
    vit = create(PLAIN)
    load_weights(vit, tmp_path / "w.bin")
    same(vit, reference)


def test_the_decoder_of_mae_s_pre_training_is_left_out(tmp_path: Path) -> None:
    encoder = create(PLAIN, num_classes=0)
    decoder = {
        "mask_token": (1, 1, 16),
        "decoder_pos_embed": (1, 17, 16),
        "decoder_embed.weight": (16, WIDTH),
    }
    decoder |= {
        "decoder_embed.bias": (16,),
        "decoder_blocks.0.norm1.weight": (16,),
        "decoder_pred.bias": (192,),
    }
    state = encoder.state_dict() | {key: torch.zeros(shape) for key, shape in decoder.items()}
    torch.save({"model": state}, tmp_path / "mae_pretrain.pth")
    vit = create(PLAIN, num_classes=0)
    load_weights(vit, tmp_path / "mae_pretrain.pth")
    same(vit, encoder)


def test_a_patch_embedding_is_resized_as_timm_does(tmp_path: Path) -> None:
    reference = create(PLAIN)
    vit = create(PLAIN, patch_size=16)
    load_weights(vit, save(reference, tmp_path / "w.safetensors"))
    expected = timm.layers.resample_patch_embed(
        reference.patch_embed.proj.weight.detach(), [16, 16]
    )
    torch.testing.assert_close(vit.patch_embed.proj.weight.detach(), expected)


def test_eva_s_filter_serves_eva_s_models(tmp_path: Path) -> None:
    name = "eva02_tiny_patch14_224"
    arguments = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "num_classes": 5}
    source = randomise(timm.create_model(name, img_size=28, **arguments))
    vit = timm.create_model(name, img_size=28, **arguments).eval()
    state = source.state_dict() | {"mask_token": torch.zeros(1, 1, WIDTH)}
    torch.save({"module": state}, tmp_path / "w.pt")
    load_weights(vit, tmp_path / "w.pt")
    same(vit, source, (3, 28, 28))


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.safetensors", "anything.pth"])
def test_a_folder_as_the_hub_lays_it_out(tmp_path: Path, weights: str) -> None:
    """AudioMAE as it is published for timm: one channel, not square, average pooling."""
    reference = randomise(Original((64, 16), channels=1, average=True))
    folder = tmp_path / "audiomae"
    folder.mkdir()
    config = {
        "architecture": PLAIN,
        "num_classes": CLASSES,
        "global_pool": "avg",
        "model_args": (
            {key: value for key, value in SMALL.items() if key != "num_classes"}
            | {"global_pool": "avg"}
        ),
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
    (folder / "config.json").write_text(json.dumps(config))
    if weights.endswith(".safetensors"):
        save(reference, folder / weights)
    else:
        torch.save(reference.state_dict(), folder / weights)
    (tmp_path / "models.toml").write_text(
        '[[models]]\nname = "audio"\ntimm = "local-dir:audiomae"\ncrop_mode = "squash"\n'
    )
    (spec,) = read_catalog(tmp_path / "models.toml", ())
    model = load_model(spec, torch.device("cpu"), torch.float32)
    assert (model.transform.size, model.transform.crop_mode, model.mean) == (
        (1, 64, 16),
        "squash",
        (0.4,),
    )
    assert (model.tokens, len(model.labels)) == (17, CLASSES)
    images = torch.randn(2, 1, 64, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            model.network(images, r=0), reference(images), rtol=1e-4, atol=1e-4
        )


DROP = None
MISFITS: dict[
    str, tuple[Callable[[], nn.Module], str, dict[str, Any], dict[str, Tensor | None], str]
] = {
    # the file's model; the entry's architecture and arguments; changes to the file; the sentence
    # after the file's name
    "average pooling": (
        lambda: Original(average=True),
        PLAIN,
        {},
        {},
        (
            "lacks norm.weight, which the model needs (2 missing in all); set model_args = {"
            ' global_pool = "avg" }'
        ),
    ),
    "class token": (
        Original,
        PLAIN,
        {"global_pool": "avg"},
        {},
        (
            "lacks fc_norm.weight, which the model needs (2 missing in all); set model_args = {"
            ' global_pool = "token" }'
        ),
    ),
    "no classifier": (
        Original,
        PLAIN,
        {},
        {"head.weight": DROP, "head.bias": DROP},
        (
            "lacks head.weight, which the model needs (2 missing in all); it has no classifier;"
            " name a file that was fine-tuned, or set num_classes = 0"
        ),
    ),
    "classes": (
        Original,
        PLAIN,
        {"num_classes": 7},
        {},
        f": head.weight has shape (5, {WIDTH}), the model needs (7, {WIDTH}); set num_classes = 5",
    ),
    "classes of swag": (
        Swag,
        PLAIN,
        {"num_classes": 7},
        {},
        (
            f": head.weight (head.layers.head.weight in the file) has shape (5, {WIDTH}), the model"
            f" needs (7, {WIDTH}); set num_classes = 5"
        ),
    ),
    "channels": (
        Original,
        PLAIN,
        {"in_chans": 1},
        {},
        (
            f": patch_embed.proj.weight has shape ({WIDTH}, 3, 8, 8), the model needs ({WIDTH}, 1,"
            " 8, 8); set in_chans = 3"
        ),
    ),
    "depth": (
        Original,
        PLAIN,
        {"depth": 3},
        {},
        (
            "lacks blocks.2.norm1.weight, which the model needs (12 missing in all); name the"
            " architecture that the file was made for: 2 blocks, 32 wide, with patches of 8"
        ),
    ),
    "width": (
        Original,
        PLAIN,
        {"embed_dim": 64},
        {},
        (
            ": cls_token has shape (1, 1, 32), the model needs (1, 1, 64); name the architecture"
            " that the file was made for: 2 blocks, 32 wide, with patches of 8"
        ),
    ),
    "distilled": (
        lambda: Original(distilled=True),
        PLAIN,
        {},
        {},
        (
            "has dist_token, which the model does not (3 unexpected in all); name a distilled"
            " architecture"
        ),
    ),
    "not distilled": (
        Original,
        DISTILLED,
        {},
        {},
        (
            "lacks dist_token, which the model needs (3 missing in all); name an architecture that"
            " is not distilled"
        ),
    ),
    "registers": (
        lambda: dinov2(registers=4),
        DINOV2,
        {},
        {},
        (
            "has register_tokens, which the model does not (2 unexpected in all); name an"
            " architecture with registers"
        ),
    ),
    "LayerScale": (
        dinov2,
        PLAIN,
        {},
        {},
        (
            "has blocks.0.ls1.gamma, which the model does not (4 unexpected in all); "
            "set model_args = { init_values = 1e-5 }"
        ),
    ),
    "one key of torchvision": (
        torchvision_vit,
        PLAIN,
        {},
        {"encoder.layers.encoder_layer_1.mlp.3.bias": DROP},
        (
            "lacks blocks.1.mlp.fc2.bias, which the model needs; name the architecture that the"
            " file was made for: 2 blocks, 32 wide, with patches of 8"
        ),
    ),
    "one shape of swag": (
        Swag,
        PLAIN,
        {},
        {"encoder.layers.layer_1.ln_2.bias": torch.zeros(3)},
        (
            ": blocks.1.norm2.bias (encoder.layers.layer_1.ln_2.bias in the file) has shape (3,),"
            " the model needs (32,); name the architecture that the file was made for: 2 blocks, 32"
            " wide, with patches of 8"
        ),
    ),
    "positions that are no grid": (
        Original,
        PLAIN,
        {},
        {"pos_embed": torch.zeros(1, 20, WIDTH)},
        (
            f": pos_embed has shape (1, 20, {WIDTH}), the model needs (1, 17, {WIDTH}); it could"
            " not be resized; set img_size to that of the file's model"
        ),
    ),
    "a layer that timm dropped": (
        Original,
        PLAIN,
        {},
        {"pre_logits.fc.weight": torch.zeros(WIDTH, WIDTH)},
        (
            "has pre_logits.fc.weight, which the model does not; timm's models have no such layer"
            " before the classifier any more: it cannot be served"
        ),
    ),
    "no norm at all": (
        Original,
        PLAIN,
        {},
        {"norm.bias": DROP},
        (
            "lacks norm.bias, which the model needs; name the architecture that the file was made"
            " for: 2 blocks, 32 wide, with patches of 8"
        ),
    ),
    "another network": (
        lambda: nn.BatchNorm2d(4),
        PLAIN,
        {},
        {},
        (
            "holds no weights of such a model: it has weight where the model has cls_token; "
            "docs/checkpoints.md lists the formats that load"
        ),
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, case: str) -> None:
    build, name, arguments, changes, sentence = MISFITS[case]
    state = {
        key: value for key, value in (build().state_dict() | changes).items() if value is not DROP
    }
    path = tmp_path / "w.pth"
    torch.save(state, path)
    with pytest.raises(ConfigError) as caught:
        load_weights(create(name, **arguments), path)
    assert str(caught.value) == f"{path}{'' if sentence.startswith(':') else ' '}{sentence}"


def test_a_file_for_three_classes_through_the_entry(tmp_path: Path) -> None:
    """The labels set the number of classes, so the sentence about it comes from the same check."""
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    spec = ModelSpec(
        name="m",
        timm=PLAIN,
        checkpoint=save(randomise(Original()), tmp_path / "w.safetensors"),
        labels=tmp_path / "labels.txt",
        img_size=32,
        model_args={key: value for key, value in SMALL.items() if key != "num_classes"},
    )
    with pytest.raises(ConfigError, match="set num_classes = 5"):
        load_model(spec, torch.device("cpu"), torch.float32)
