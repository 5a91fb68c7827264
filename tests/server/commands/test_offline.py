"""A model is picked by name, and an unreadable file is named; `test_cli` runs the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.commands.offline import pick_model, read_file
from server.errors import ConfigError
from server.settings import ModelSettings

SETTINGS = ModelSettings(models=("vit_tiny_patch16_224", "vit_small_patch16_224"))


def test_the_first_model_is_the_default() -> None:
    assert pick_model(SETTINGS, "").name == "vit_tiny_patch16_224"


def test_a_model_is_picked_by_name() -> None:
    assert pick_model(SETTINGS, "vit_small_patch16_224").name == "vit_small_patch16_224"


def test_an_unknown_model_is_an_error_that_lists_the_others() -> None:
    with pytest.raises(ConfigError, match="no model 'm'; there are vit_tiny_patch16_224, vit_sm"):
        pick_model(SETTINGS, "m")


def test_an_unreadable_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.png: No such file"):
        read_file(tmp_path / "none.png")
