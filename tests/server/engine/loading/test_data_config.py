"""Fields of the entry and of a folder decide how images are prepared; mistakes are named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
from PIL import Image

from server.catalog.entries import INTERPOLATIONS, ModelSpec
from server.engine.loading.data_config import make_transform, resolve_data_config
from server.engine.loading.model_loader import is_of_transformers
from server.errors import ConfigError
from tests.server.engine.loading.small_vit import VIT, create_timm


def resolve(folder_config: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    vit = create_timm(VIT)
    vit.pretrained_cfg = {**vit.pretrained_cfg, **(folder_config or {})}
    return resolve_data_config(ModelSpec(name="m", timm=VIT, **fields), vit)


@pytest.mark.parametrize("name", INTERPOLATIONS)
def test_every_filter_of_pillow_is_used(name: str) -> None:
    assert make_transform(resolve(interpolation=name)).interpolation == name
    assert make_transform(resolve({"interpolation": name})).interpolation == name
    assert name.upper() in Image.Resampling.__members__
    assert timm.data.transforms.str_to_interp_mode(name).value == name


def test_another_filter_of_a_folder_is_refused_unless_the_entry_sets_one() -> None:
    random = {"interpolation": "random"}
    with pytest.raises(ConfigError, match="no interpolation 'random'; set it to one of bicubic, "):
        resolve(random)
    assert resolve(random, interpolation="bicubic")["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("mean", "std", "warns"),
    [
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True),
        ((127.5,), (127.5,), True),
        ((0.5, 0.5, 0.5), (58.4, 57.1, 57.4), True),
        ((104, 117, 124), (1, 1, 1), True),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ((0, 0, 0), (1, 1, 1), False),
        ((-4.2677,), (4.569,), False),  # AudioMAE
    ],
)
def test_values_for_pixels_up_to_255_give_a_warning(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    warns: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tome.engine"):
        resolve(mean=mean, std=std)
    assert ("they are from 0 to 1 here: divide both by 255" in caplog.text) == warns


def test_a_std_of_0_in_a_folder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"std = \[0.5, 0, 0.5\] must be greater than 0: pixels"):
        resolve({"std": [0.5, 0, 0.5]})


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"_class_name": "UNet2DModel", "_diffusers_version": "0.30"}, "but _class_name, _diff"),
        ({}, "but nothing"),
    ],
    ids=["diffusers", "empty"],
)
def test_a_folder_of_another_library_is_named(
    tmp_path: Path,
    config: dict[str, Any],
    found: str,
) -> None:
    with pytest.raises(ConfigError, match=f"describes no model of timm or transformers.*{found}"):
        is_of_transformers(tmp_path, config)
