"""``preprocessor_config.json`` prepares images as transformers' own image processors do."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.engine.loading.data_config import expand_to_channels
from server.engine.loading.preprocessor import read_preprocessor
from server.errors import ConfigError
from server.imaging.decode import to_pixels
from server.media.transforms import ImageTransform

hf = pytest.importorskip("transformers")

IMAGE_SIZE = (32, 32)


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture with some noise, so that a shift of one pixel shows."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    slopes = np.stack([rows * 2, columns * 2, rows + columns], axis=2) % 190
    return Image.fromarray((slopes + noise).astype(np.uint8))


def prepare(folder: Path, name: str, image: Image.Image) -> npt.NDArray[np.float64]:
    """Return the normalised pixels that the server gives to the model."""
    data = read_preprocessor(folder, name, IMAGE_SIZE)
    transform = ImageTransform(
        size=(3, *data["input_size"]),
        interpolation=data["interpolation"],
        crop_pct=data["crop_pct"],
        crop_mode=data["crop_mode"],
    )
    pixels = to_pixels(np.asarray(image), transform) / 255
    mean, std = (np.array(expand_to_channels(data[key], 3)) for key in ("mean", "std"))
    return (pixels - mean[:, None, None]) / std[:, None, None]


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


# Image processors in Pillow's implementation, whose filters the server has, and their options.
PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ViT": (hf.ViTImageProcessorPil, {"size": {"height": 40, "width": 40}}),
    "ViT, not square": (hf.ViTImageProcessorPil, {"size": {"height": 24, "width": 40}}),
    "ViT, lanczos": (hf.ViTImageProcessorPil, {"size": 40, "resample": 1}),
    "ViT, nearest": (hf.ViTImageProcessorPil, {"size": 40, "resample": 0}),
    "ViT, box": (hf.ViTImageProcessorPil, {"size": 40, "resample": 4}),
    "ViT, hamming": (hf.ViTImageProcessorPil, {"size": 40, "resample": 5}),
    "ViT, not rescaled": (
        hf.ViTImageProcessorPil,
        {"size": 40, "do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 50, 40]},
    ),
    "ViT, from -1 to 1": (
        hf.ViTImageProcessorPil,
        {"size": 40, "rescale_factor": 2 / 255, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
    ),
    "ViT, not normalised": (hf.ViTImageProcessorPil, {"size": 40, "do_normalize": False}),
    "DeiT": (hf.DeiTImageProcessorPil, {"size": 48, "crop_size": 40}),
    "BEiT": (hf.BeitImageProcessorPil, {"size": 40}),
    "BEiT, cropped": (
        hf.BeitImageProcessorPil,
        {"size": 48, "crop_size": 40, "do_center_crop": True},
    ),
    "DINOv2": (hf.BitImageProcessorPil, {"size": {"shortest_edge": 48}, "crop_size": 40}),
    "CLIP": (hf.CLIPImageProcessorPil, {"size": {"shortest_edge": 40}, "crop_size": 40}),
    "CLIP, small": (hf.CLIPImageProcessorPil, {"size": {"shortest_edge": 30}, "crop_size": 40}),
    "SigLIP": (hf.SiglipImageProcessorPil, {"size": {"height": 40, "width": 40}}),
}


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (33, 33)], ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_images_are_prepared_as_transformers_does(
    tmp_path: Path,
    name: str,
    size: tuple[int, int],
) -> None:
    kind, options = PROCESSORS[name]
    processor = kind(**options)
    processor.save_pretrained(tmp_path)
    image = picture(*size)
    expected = processor(image)["pixel_values"][0]
    found = prepare(tmp_path, name.partition(",")[0].replace("BEiT", "Beit"), image)
    assert found.shape == expected.shape
    # Rounding differs where Pillow resizes columns before rows, and where a crop has been computed
    # alone: see `server.imaging.resize`.
    step = (expected.max() - expected.min()) / 255
    difference = np.abs(found - expected)
    assert difference.max() <= 3 * step
    assert (difference > 1.6 * step).mean() < 0.01


OLD = {
    "feature_extractor_type": "ViTFeatureExtractor",
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 48,
}


def test_the_old_format_has_sizes_of_one_number(tmp_path: Path) -> None:
    write(tmp_path, OLD)
    assert read_preprocessor(tmp_path, "ViT", IMAGE_SIZE) == {
        "input_size": (48, 48),
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": (0.5, 0.4, 0.3),
        "std": (0.5,),
        "interpolation": "bilinear",
    }


def test_null_is_not_given(tmp_path: Path) -> None:
    """Processors that were saved before version 5 hold null for what has its default."""
    write(tmp_path, dict.fromkeys(OLD))
    data = read_preprocessor(tmp_path, "DeiT", IMAGE_SIZE)
    write(tmp_path, {})
    assert data == read_preprocessor(tmp_path, "DeiT", IMAGE_SIZE)


def test_in_the_old_format_of_clip_one_number_is_the_shortest_side(tmp_path: Path) -> None:
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 48, "crop_size": 40}
    write(tmp_path, {**old, "do_center_crop": True, "do_resize": True, "resample": 3})
    data = read_preprocessor(tmp_path, "CLIP", IMAGE_SIZE)
    assert data["crop_mode"] == "center"
    assert int(40 / data["crop_pct"]) == 48


def test_the_processor_of_a_pair_of_models_is_within_its_own_file(tmp_path: Path) -> None:
    inner = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 48, "width": 40}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    assert read_preprocessor(tmp_path, "Siglip", IMAGE_SIZE)["input_size"] == (48, 40)


def test_without_the_file_the_defaults_are_used_and_a_warning_says_so(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tome.engine"):
        data = read_preprocessor(tmp_path, "CLIP", IMAGE_SIZE)
    assert "has no preprocessor_config.json" in caplog.text
    assert data["input_size"] == IMAGE_SIZE
    assert data["mean"] == tuple(hf.CLIPImageProcessor.image_mean)


def test_a_processor_that_does_not_resize_takes_images_of_the_model_s_size(tmp_path: Path) -> None:
    write(tmp_path, {**OLD, "do_resize": False})
    assert read_preprocessor(tmp_path, "ViT", IMAGE_SIZE)["input_size"] == IMAGE_SIZE


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"feature_extractor_type": "ConvNextFeatureExtractor"}, "ConvNext.* is not supported"),
        ({"size": {"shortest_edge": 48}}, "images of many sizes, which is not supported"),
        ({"size": {"longest_edge": 48}}, "a size with longest_edge is not supported"),
        ({"do_resize": False, "do_center_crop": True}, "do_center_crop without do_resize"),
        (
            {"do_center_crop": True, "crop_size": {"height": 40, "width": 30}},
            "a crop of another aspect ratio",
        ),
        (
            {
                "do_center_crop": True,
                "size": {"shortest_edge": 48},
                "crop_size": {"height": 40, "width": 30},
            },
            "shortest_edge with a crop that is not square",
        ),
        ({"resample": 9}, "cannot be read"),
        ({"image_mean": ["a"]}, "cannot be read"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_named(
    tmp_path: Path,
    changes: dict[str, Any],
    sentence: str,
) -> None:
    write(tmp_path, {**OLD, **changes})
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_preprocessor(tmp_path, "ViT", IMAGE_SIZE)
    assert "preprocessor_config.json" in str(caught.value)
