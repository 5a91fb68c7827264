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
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import (
    LoadedModel,
    check_classifier,
    create,
    for_channels,
    load_model,
)
from server.errors import ConfigError
from tests.server.engine.tiny import ARGUMENTS
from tome_core import Schedule

CPU = torch.device("cpu")


def load(folder: Path, **changes: object) -> LoadedModel:
    (spec,) = read_catalog(folder / "models.toml", ())
    return load_model(spec.model_copy(update=changes), CPU, torch.float32)


def test_what_the_entry_says_reaches_the_model(tiny: LoadedModel) -> None:
    assert (tiny.tokens, tiny.prefix, tiny.depth, tiny.labels) == (17, 1, 2, ("cat", "dog", "fish"))
    assert tiny.grid == (4, 4)
    assert tiny.transform.size == (3, 32, 32)
    assert tiny.transform.interpolation == "bilinear"
    assert tiny.mean == (0.5, 0.5, 0.5)


def test_answers_are_those_of_timm_at_r_0(
    tiny: LoadedModel, tiny_folder: Path, runner: Runner
) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", **ARGUMENTS).eval()
    vit.load_state_dict(load_file(tiny_folder / "tiny.safetensors"))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    with torch.inference_mode():
        expected = vit((torch.from_numpy(pixels) / 255 - 0.5) / 0.25)
    torch.testing.assert_close(
        runner.logits(pixels, [Schedule.constant(0)] * 4), expected, rtol=1e-4, atol=1e-4
    )


def test_a_torch_file_gives_the_same_model(tiny: LoadedModel, tiny_folder: Path) -> None:
    other = load(tiny_folder, checkpoint=tiny_folder / "tiny.pth")
    for key, value in tiny.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[key])


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_the_entry_s_crop_mode_reaches_the_transform(tiny_folder: Path, mode: str) -> None:
    assert load(tiny_folder, crop_mode=mode).transform.crop_mode == mode


def test_a_mean_beyond_the_pixels_gives_a_border_that_pixels_can_have(tiny_folder: Path) -> None:
    assert load(tiny_folder, mean=(-4.3, 0.5, 1.5)).transform.fill == (0, 128, 255)


def test_timm_s_weights_are_not_served_with_a_classifier_left_at_random() -> None:
    spec = ModelSpec(name="m", timm="vit_tiny_patch16_224", num_classes=5)
    with pytest.raises(
        ConfigError, match="have 1000 classes, the labels or num_classes say 5; name a checkpoint"
    ):
        check_classifier(spec, create(spec, None, pretrained=False))
    whole = ModelSpec(name="m", timm="vit_tiny_patch16_224")
    check_classifier(whole, create(whole, None, pretrained=False))


def test_labels_give_the_number_of_classes_and_numbers_stand_in_for_them(tiny_folder: Path) -> None:
    assert load(tiny_folder, labels=None, num_classes=3).labels == ("0", "1", "2")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("missing", "lacks blocks.1.mlp.fc2.bias, which the model needs"),
        ("shape", "head.bias has shape (4,), the model needs (3,)"),
        ("extra", "has blocks.9.extra, which the model does not"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tiny_folder: Path, tmp_path: Path, change: str, sentence: str
) -> None:
    state = load_file(tiny_folder / "tiny.safetensors")
    if change == "missing":
        del state["blocks.1.mlp.fc2.bias"]
    elif change == "shape":
        state["head.bias"] = torch.zeros(4)
    else:
        state["blocks.9.extra"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as caught:
        load(tiny_folder, checkpoint=tmp_path / "w.safetensors")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


DOCS = Path(__file__).parents[4] / "docs" / "checkpoints.md"
ENTRIES = [
    table
    for block in re.findall(
        r"^```toml\n(.*?)^```", DOCS.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    for table in tomllib.loads(block)["models"]
]


@pytest.mark.parametrize("table", ENTRIES, ids=[table["name"] for table in ENTRIES])
def test_the_entries_of_the_docs_are_valid(table: dict[str, Any]) -> None:
    spec = ModelSpec.model_validate(table)
    if not spec.timm.startswith("local-dir:"):  # that needs a folder; test_weights.py has one
        with torch.device("meta"):
            assert create(spec, 10, pretrained=False).num_classes


def test_other_mistakes_are_one_sentence(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match="2 labels for 3 classes"):
        load(tiny_folder, labels=tmp_path / "two.txt", num_classes=3)
    with pytest.raises(ConfigError, match=r"has head\.bias, which the model does not"):
        load(tiny_folder, num_classes=0)
    with pytest.raises(ConfigError, match="timm cannot create 'vit_no_such'"):
        load(tiny_folder, timm="vit_no_such")
    with pytest.raises(ConfigError, match="mean has 2 values for 3 channels"):
        load(tiny_folder, mean=(0.5, 0.5))
    with pytest.raises(ConfigError, match="cannot be served: the model is a ResNet"):
        load_model(
            ModelSpec(name="r", timm="resnet18", checkpoint=_resnet(tmp_path)), CPU, torch.float32
        )


def test_a_model_that_takes_no_pictures_is_refused(tmp_path: Path) -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2, "in_chans": 4}
    file = tmp_path / "four.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", **arguments).state_dict(), file)
    spec = ModelSpec(name="m", timm="vit_tiny_patch16_224", checkpoint=file, model_args=arguments)
    with pytest.raises(ConfigError, match="takes 4 channels; images have 1 or 3"):
        load_model(spec, CPU, torch.float32)


def _resnet(folder: Path) -> Path:
    save_file(timm.create_model("resnet18").state_dict(), folder / "r.safetensors")
    return folder / "r.safetensors"


def test_imagenet_models_get_timm_s_names(tmp_path: Path) -> None:
    arguments = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    vit = timm.create_model("vit_tiny_patch16_224", **arguments)
    save_file(vit.state_dict(), tmp_path / "w.safetensors")
    spec = ModelSpec(
        name="m",
        timm="vit_tiny_patch16_224",
        checkpoint=tmp_path / "w.safetensors",
        model_args=arguments,
    )
    model = load_model(spec, CPU, torch.float32)
    assert len(model.labels) == 1000
    assert "tench" in model.labels[0]
    assert model.transform.size == (3, 224, 224)
    # timm's own configuration of this architecture fills what the entry leaves out
    assert model.transform.crop_pct == vit.pretrained_cfg["crop_pct"]


def test_a_profile_gives_accuracies(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(
        '{"levels": [{"r": "8", "accuracy": 81.5, "tokens": 9, "relative_flops": 0.7, '
        '"images_per_s": 9, "speedup": 1.2}]}'
    )
    assert load(tiny_folder, profile=tmp_path / "p.json").accuracy == {"8": 81.5}
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(ConfigError, match="no profile that tome-serve evaluate wrote"):
        load(tiny_folder, profile=tmp_path / "p.json")


def test_not_a_number_is_noticed(tiny: LoadedModel) -> None:
    runner = Runner(replace(tiny, mean=(float("nan"),) * 3), CPU)
    (prediction,) = runner.run(np.zeros((1, 3, 32, 32), np.uint8), [Schedule.constant(0)], [1])
    assert not prediction.finite


def test_one_value_is_for_all_channels() -> None:
    assert for_channels([0.5], 3) == (0.5, 0.5, 0.5)
    assert for_channels((0.1, 0.2, 0.3), 3) == (0.1, 0.2, 0.3)
