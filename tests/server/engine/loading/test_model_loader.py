"""A catalog entry becomes a model, and a mistake in it becomes one sentence."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from server.catalog.entries import ModelSpec, read_catalog
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.data_config import expand_to_channels
from server.engine.loading.model_loader import (
    LoadedModel,
    load_model,
)
from server.engine.loading.timm_models import check_classifier, create_timm_model
from server.errors import ConfigError
from server.media.transforms import ImageTransform
from tests.server.engine.tiny import ARGUMENTS
from tome_core import Schedule

CPU = torch.device("cpu")
VIT_TINY = "vit_tiny_patch16_224"
# Arguments of timm that make an architecture small.
SMALL = {"depth": 1, "embed_dim": 32, "num_heads": 2}


def load_tiny(folder: Path, **changes: object) -> LoadedModel:
    """Load the tiny model with some fields of its entry changed."""
    (spec,) = read_catalog(folder / "models.toml", ())
    return load_model(spec.model_copy(update=changes), CPU, torch.float32)


def images(model: LoadedModel) -> ImageTransform:
    """Return the transform of a model of images."""
    assert isinstance(model.transform, ImageTransform)
    return model.transform


def save_random(folder: Path, name: str, **arguments: Any) -> Path:
    """Save random weights of a timm architecture."""
    path = folder / "w.safetensors"
    vit = timm.create_model(name, **arguments)
    save_file(vit.state_dict(), path)
    return path


def test_a_model_has_the_properties_of_its_entry(tiny: LoadedModel) -> None:
    assert tiny.tokens == 17
    assert tiny.prefix == 1
    assert tiny.depth == 2
    assert tiny.labels == ("cat", "dog", "fish")
    assert tiny.grid == (4, 4)
    assert tiny.transform.size == (3, 32, 32)
    assert images(tiny).interpolation == "bilinear"
    assert tiny.mean == (0.5, 0.5, 0.5)


def test_at_r_0_the_logits_are_timm_s(tiny_folder: Path, runner: Runner) -> None:
    vit = timm.create_model(VIT_TINY, **ARGUMENTS).eval()
    vit.load_state_dict(load_file(tiny_folder / "tiny.safetensors"))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    with torch.inference_mode():
        expected = vit((torch.from_numpy(pixels) / 255 - 0.5) / 0.25)
    logits = runner.logits(pixels, [Schedule.constant(0)] * 4)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


def test_the_model_merges_by_the_rule_of_its_entry(tiny: LoadedModel, tiny_folder: Path) -> None:
    assert tiny.network.merging.rule == "paper"
    pairs = load_tiny(tiny_folder, merging="pairs").network
    assert pairs.merging == tiny.network.merging.with_rule("pairs")


def test_a_torch_file_gives_the_same_model(tiny: LoadedModel, tiny_folder: Path) -> None:
    model = load_tiny(tiny_folder, checkpoint=tiny_folder / "tiny.pth")
    state_dict = model.network.state_dict()
    for key, value in tiny.network.state_dict().items():
        assert torch.equal(value, state_dict[key])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_transform_has_the_crop_mode_of_the_entry(tiny_folder: Path, mode: str) -> None:
    assert images(load_tiny(tiny_folder, crop_mode=mode)).crop_mode == mode


def test_the_colour_of_a_border_is_clamped_to_that_of_pixels(tiny_folder: Path) -> None:
    model = load_tiny(tiny_folder, mean=(-4.3, 0.5, 1.5))
    assert images(model).fill == (0, 128, 255)


def test_timm_s_weights_with_a_random_classifier_are_refused() -> None:
    spec = ModelSpec(name="m", timm=VIT_TINY, num_classes=5)
    vit = create_timm_model(spec, None, pretrained=False)
    expected = "have 1000 classes, the labels or num_classes say 5; name a checkpoint"
    with pytest.raises(ConfigError, match=expected):
        check_classifier(spec, vit)


def test_timm_s_weights_with_their_own_classifier_are_accepted() -> None:
    spec = ModelSpec(name="m", timm=VIT_TINY)
    vit = create_timm_model(spec, None, pretrained=False)
    check_classifier(spec, vit)


def test_without_labels_the_labels_are_class_indices(tiny_folder: Path) -> None:
    model = load_tiny(tiny_folder, labels=None, num_classes=3)
    assert model.labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("key", "tensor", "sentence"),
    [
        (
            "blocks.1.mlp.fc2.bias",
            None,
            "lacks blocks.1.mlp.fc2.bias, which the model needs",
        ),
        (
            "head.bias",
            torch.zeros(4),
            "head.bias has shape (4,), the model needs (3,)",
        ),
        (
            "blocks.9.extra",
            torch.zeros(1),
            "has blocks.9.extra, which the model does not",
        ),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_weights_that_do_not_fit_are_named(
    tiny_folder: Path,
    tmp_path: Path,
    key: str,
    tensor: torch.Tensor | None,
    sentence: str,
) -> None:
    state_dict = load_file(tiny_folder / "tiny.safetensors")
    if tensor is None:
        del state_dict[key]
    else:
        state_dict[key] = tensor
    path = tmp_path / "w.safetensors"
    save_file(state_dict, path)
    with pytest.raises(ConfigError) as caught:
        load_tiny(tiny_folder, checkpoint=path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def read_documented_tables() -> list[dict[str, Any]]:
    """Return the ``[[models]]`` tables of docs/checkpoints.md."""
    path = Path(__file__).parents[4] / "docs" / "checkpoints.md"
    text = path.read_text("utf-8")
    tables = []
    for block in re.findall(r"^```toml\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        tables += tomllib.loads(block)["models"]
    return tables


TABLES = read_documented_tables()


@pytest.mark.parametrize("table", TABLES, ids=[table["name"] for table in TABLES])
def test_the_documented_entries_are_valid(table: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate(table)
    if spec.timm.startswith("local-dir:"):
        return  # needs a folder; test_weights.py has one
    with torch.device("meta"):
        assert create_timm_model(spec, 10, pretrained=False).num_classes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_classes": 0}, r"has head\.bias, which the model does not"),
        ({"timm": "vit_no_such"}, "timm cannot create 'vit_no_such'"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values for 3 channels"),
    ],
    ids=["no-classifier", "no-such-architecture", "mean"],
)
def test_a_mistake_in_the_entry_is_named(
    tiny_folder: Path,
    changes: dict[str, object],
    sentence: str,
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_tiny(tiny_folder, **changes)


def test_a_model_of_transformers_on_the_hub_is_told_how_to_be_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    spec = ModelSpec(name="m", timm=f"local-dir:{tmp_path}")
    with pytest.raises(ConfigError, match="names no architecture of timm; download a model of tr"):
        create_timm_model(spec, None, pretrained=True)


def test_too_few_labels_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "two.txt"
    labels.write_text("a\nb\n")
    with pytest.raises(ConfigError, match="2 labels for 3 classes"):
        load_tiny(tiny_folder, labels=labels, num_classes=3)


def test_a_model_that_is_no_vision_transformer_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec(name="r", timm="resnet18", checkpoint=save_random(tmp_path, "resnet18"))
    with pytest.raises(ConfigError, match="cannot be served: the model is a ResNet"):
        load_model(spec, CPU, torch.float32)


def test_a_model_with_four_channels_is_refused(tmp_path: Path) -> None:
    arguments = {**SMALL, "in_chans": 4}
    spec = ModelSpec(
        name="m",
        timm=VIT_TINY,
        checkpoint=save_random(tmp_path, VIT_TINY, **arguments),
        model_args=arguments,
    )
    with pytest.raises(ConfigError, match="takes 4 channels; images have 1 or 3"):
        load_model(spec, CPU, torch.float32)


def test_imagenet_models_have_timm_s_labels_and_transform(tmp_path: Path) -> None:
    spec = ModelSpec(
        name="m",
        timm=VIT_TINY,
        checkpoint=save_random(tmp_path, VIT_TINY, **SMALL),
        model_args=SMALL,
    )
    model = load_model(spec, CPU, torch.float32)
    assert len(model.labels) == 1000
    assert "tench" in model.labels[0]
    assert model.transform.size == (3, 224, 224)
    pretrained_cfg = timm.create_model(VIT_TINY, **SMALL).pretrained_cfg
    assert images(model).crop_pct == pretrained_cfg["crop_pct"]


def test_a_profile_has_the_quality_of_each_schedule(tiny_folder: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text(
        '{"levels": [{"r": "8", "accuracy": 81.5, "tokens": 9, "relative_flops": 0.7, '
        '"images_per_s": 9, "speedup": 1.2}]}'
    )
    (row,) = load_tiny(tiny_folder, profile=profile).profile.values()
    assert (row.r, row.accuracy, row.agreement) == ("8", 81.5, None)


def test_a_file_that_is_no_profile_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    profile = tmp_path / "p.json"
    profile.write_text("{}")
    with pytest.raises(ConfigError, match="no profile that tome-serve evaluate or tune wrote"):
        load_tiny(tiny_folder, profile=profile)


def test_a_result_that_is_not_a_number_is_reported(tiny: LoadedModel) -> None:
    model = replace(tiny, mean=(float("nan"),) * 3)
    image = ImageInput(np.zeros((3, 32, 32), np.uint8), Schedule.constant(0), top_k=1)
    (prediction,) = Runner(model, CPU).run([image])
    assert not prediction.finite


def test_one_value_applies_to_all_channels() -> None:
    assert expand_to_channels([0.5], 3) == (0.5, 0.5, 0.5)
    assert expand_to_channels((0.1, 0.2, 0.3), 3) == (0.1, 0.2, 0.3)
