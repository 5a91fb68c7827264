"""Which modality an entry has, and which fields mean nothing for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm

from server.catalog.entries import ModelSpec
from server.engine.loading.modality import check_fields, expected_modality, modality_of
from server.errors import ConfigError
from server.media.modality import Modality

NETWORKS: dict[Modality, tuple[str, dict[str, Any]]] = {
    Modality.IMAGE: ("vit_tiny_patch16_224", {"img_size": 32}),
    Modality.AUDIO: ("ast_tiny_patch16", {"img_size": (128, 56)}),
    Modality.VIDEO: ("video_vit_tiny_patch16", {"img_size": 32, "frames": 4}),
}


def entry(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": "m", "timm": "vit_tiny_patch16_224", **fields})


@pytest.mark.parametrize("modality", NETWORKS)
def test_the_architecture_decides(modality: Modality, tmp_path: Path) -> None:
    name, arguments = NETWORKS[modality]
    vit = timm.create_model(name, depth=1, **arguments)
    (tmp_path / "config.json").write_text(f'{{"architecture": "{name}"}}')
    for spec in (entry(timm=name), entry(timm=f"local-dir:{tmp_path}")):
        assert expected_modality(spec) is modality
        assert modality_of(spec, vit) is modality
    for other in Modality:
        spec = entry(timm=name, modality=other)
        if other is modality:
            assert modality_of(spec, vit) is modality
        elif (modality, other) == (Modality.IMAGE, Modality.AUDIO):
            assert modality_of(spec, vit) is Modality.AUDIO  # AudioMAE
        else:
            with pytest.raises(ConfigError, match=f'set modality = "{modality}", or leave it out'):
                modality_of(spec, vit)


@pytest.mark.parametrize(
    ("modality", "fields", "sentence"),
    [
        ("image", {"subtract_mean": False}, "takes images: subtract_mean is a field of sound"),
        ("image", {"stride": 2}, "takes images: stride is a field of video"),
        ("audio", {"crops": 3}, "takes sound: crops is a field of video"),
        ("audio", {"crop_pct": 0.9}, "takes sound: crop_pct is a field of images"),
        ("video", {"crop_mode": "squash"}, "takes video: crop_mode is a field of images"),
    ],
)
def test_a_field_of_another_modality_is_refused(
    modality: Modality, fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_fields(entry(**fields), Modality(modality))


def test_fields_that_several_have_are_accepted() -> None:
    for modality in (Modality.IMAGE, Modality.VIDEO):
        check_fields(entry(interpolation="bicubic", crop_pct=0.9), modality)
