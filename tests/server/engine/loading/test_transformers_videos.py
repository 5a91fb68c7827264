"""Folders of transformers' VideoMAE and ViViT: equal logits, and what the files decide."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from server.engine.loading.preprocessor import read_preprocessor
from server.errors import ConfigError
from server.media.transforms import VideoTransform
from tests.server.engine.loading.tiny_sounds import edit_json
from tests.server.engine.loading.tiny_videos import (
    FRAMES,
    SIDE,
    assert_same,
    clips,
    hf,
    load,
    save_folder,
    tall,
    videomae,
    vivit,
)
from tome_core import Schedule

INPUTS = clips()


@torch.no_grad()
def logits(model: Any, inputs: Tensor = INPUTS) -> Tensor:
    output: Tensor = model(inputs).logits
    return output


@pytest.mark.parametrize(
    ("make", "tubelet", "options"),
    [
        (videomae, 2, {}),
        (videomae, 2, {"qv_bias": False}),
        (videomae, 4, {"tubelet_size": 4, "hidden_act": "relu"}),
        (videomae, 2, {"patch_size": 16, "num_frames": 16}),
        (vivit, 2, {}),
        (vivit, 4, {"tubelet_size": [4, 8, 16], "qkv_bias": False}),
    ],
    ids=["videomae", "no-bias", "four-frames", "patches", "vivit", "vivit-oblong"],
)
def test_a_folder_decides_everything(
    tmp_path: Path, make: Any, tubelet: int, options: dict[str, Any]
) -> None:
    model = make(**options)
    loaded = load(timm=f"local-dir:{save_folder(model, tmp_path)}")
    inputs = clips(frames=options.get("num_frames", FRAMES))
    assert_same(loaded, inputs, logits(model, inputs))
    assert loaded.transform == VideoTransform(
        frames=inputs.shape[1],
        tubelet=tubelet,
        height=SIDE,
        width=SIDE,
        resize=40,
        stride=2 if make is vivit else 4,
    )
    assert loaded.labels == ("jump", "run", "wave")


@pytest.mark.parametrize("make", [videomae, vivit])
def test_the_names_of_modules_load_too(tmp_path: Path, make: Any) -> None:
    model = make()
    folder = save_folder(model, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert_same(load(timm=f"local-dir:{folder}"), INPUTS, logits(model))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (videomae, {"kind": hf.VideoMAEModel}),
        (videomae, {"kind": hf.VideoMAEModel, "use_mean_pooling": False}),
        (videomae, {"kind": hf.VideoMAEForPreTraining, "use_mean_pooling": False}),
        (vivit, {"kind": hf.VivitModel}),
    ],
    ids=["videomae", "norm", "pre-training", "vivit"],
)
@torch.no_grad()
def test_a_model_without_a_classifier_gives_features(
    tmp_path: Path, make: Any, options: dict[str, Any]
) -> None:
    model = make(**options)
    loaded = load(timm=f"local-dir:{save_folder(model, tmp_path)}")
    base = getattr(model, "videomae", model)
    tokens = base(INPUTS).last_hidden_state
    assert_same(loaded, INPUTS, tokens[:, 0] if make is vivit else tokens.mean(dim=1))
    assert loaded.labels == ()


@torch.inference_mode()
def test_clips_of_several_schedules_are_those_of_one_each(tmp_path: Path) -> None:
    """Merging end to end: a mixed batch, of which a clip that does not merge is transformers'."""
    model = videomae()
    loaded = load(timm=f"local-dir:{save_folder(model, tmp_path)}", levels=(0, 8, 16))
    inputs = clips(count=3)
    schedules = [Schedule.constant(0), Schedule.constant(16), Schedule.linear(16, -1)]
    mixed = loaded.network(tall(inputs), r=schedules)
    torch.testing.assert_close(mixed[:1], logits(model, inputs[:1]), rtol=1e-5, atol=1e-5)
    for index, schedule in enumerate(schedules):
        alone = loaded.network(tall(inputs[index : index + 1]), r=schedule)
        torch.testing.assert_close(mixed[index : index + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(mixed, logits(model, inputs), atol=1e-3)


def test_positions_that_are_computed_fit_any_clip(tmp_path: Path) -> None:
    model = videomae()
    folder = save_folder(model, tmp_path)
    loaded = load(timm=f"local-dir:{folder}", img_size=16, model_args={"frames": 4})
    shorter = videomae(image_size=16, num_frames=4)
    shorter.load_state_dict(model.state_dict())
    inputs = clips(frames=4, side=16)
    assert_same(loaded, inputs, logits(shorter, inputs))
    assert isinstance(loaded.transform, VideoTransform)
    assert loaded.transform.resize == 20  # as much larger than the crop as the processor's


def test_positions_that_are_learned_do_not(tmp_path: Path) -> None:
    folder = save_folder(vivit(), tmp_path)
    with pytest.raises(ConfigError, match=r"pos_embed .* has shape \(1, 65, 32\), the model needs"):
        load(timm=f"local-dir:{folder}", model_args={"frames": 4})


PROCESSORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "VideoMAE": (hf.VideoMAEVideoProcessor, {"image_mean": [0.4, 0.3, 0.2]}),
    "VideoMAE of images": (hf.VideoMAEImageProcessor, {"image_std": [0.2, 0.3, 0.4]}),
    "Vivit": (hf.VivitVideoProcessor, {"image_mean": [0.4, 0.3, 0.2]}),
    "Vivit of images": (hf.VivitImageProcessor, {"image_std": [0.2, 0.3, 0.4]}),
    "Vivit, no offset": (hf.VivitImageProcessor, {"offset": False, "rescale_factor": 1 / 255}),
    "Vivit, not normalised": (hf.VivitImageProcessor, {"do_normalize": False}),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_normalised_as_transformers_does(tmp_path: Path, name: str) -> None:
    kind, options = PROCESSORS[name]
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = kind(**sizes, **options)
    processor.save_pretrained(tmp_path)
    frames = list(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    expected = np.asarray(processor(frames, return_tensors="np")["pixel_values"])[0]
    data = read_preprocessor(tmp_path, name.split()[0].rstrip(","), (32, 32))
    mean, std = (np.resize(data[key], 3).astype(np.float32) for key in ("mean", "std"))
    found = (np.stack(frames) / np.float32(255) - mean) / std
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-5)
    assert (data["crop_mode"], data["interpolation"]) == ("center", "bilinear")


def test_the_processors_of_images_that_the_hub_has_load_too(tmp_path: Path) -> None:
    """Folders of before version 4.25, in which one number is the shorter side."""
    folder = save_folder(videomae(), tmp_path)
    (folder / "video_preprocessor_config.json").unlink()
    old = {"feature_extractor_type": "VideoMAEFeatureExtractor", "size": 40, "crop_size": SIDE}
    means = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps({**old, **means}))
    loaded = load(timm=f"local-dir:{folder}")
    assert isinstance(loaded.transform, VideoTransform)
    assert loaded.transform.resize == 40
    assert (loaded.mean, loaded.std) == tuple(map(tuple, means.values()))


def test_the_processor_may_be_within_its_own_file(tmp_path: Path) -> None:
    folder = save_folder(videomae(), tmp_path)
    path = folder / "video_preprocessor_config.json"
    inner = {**json.loads(path.read_text()), "image_mean": [0.1, 0.2, 0.3]}
    path.unlink()
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": inner}))
    assert load(timm=f"local-dir:{folder}").mean == (0.1, 0.2, 0.3)


def test_without_its_processor_the_defaults_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_folder(vivit(), tmp_path)
    (folder / "video_preprocessor_config.json").unlink()
    loaded = load(timm=f"local-dir:{folder}")
    assert isinstance(loaded.transform, VideoTransform)
    assert loaded.transform.resize == SIDE
    assert (loaded.mean, loaded.std) == ((0.75,) * 3, (0.25,) * 3)  # from -1 to 1, then 0.5
    assert "as VivitVideoProcessor does by default" in caplog.text


def test_a_processor_that_samples_the_whole_video_does_so_here(tmp_path: Path) -> None:
    folder = save_folder(videomae(), tmp_path, do_sample_frames=True, num_frames=FRAMES)
    transform = load(timm=f"local-dir:{folder}").transform
    assert isinstance(transform, VideoTransform)
    assert transform.sampling == "uniform"
    other = load(timm=f"local-dir:{folder}", sampling="stride", stride=2).transform
    assert isinstance(other, VideoTransform)
    assert (other.sampling, other.stride) == ("stride", 2)


PROCESSOR = "video_preprocessor_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", {"model_type": "timesformer"}, "'timesformer', which is not supported: it"),
        ("config.json", {"model_type": "xclip"}, "with one message from every other one"),
        ("config.json", {"use_mean_pooling": False}, "reads the first tubelet of a clip, is not"),
        ("config.json", {"num_frames": 7}, "7 frames of 32 x 32 pixels are no whole number"),
        (
            PROCESSOR,
            {"crop_size": {"height": 24, "width": 24}},
            "crop them to 32 x 32, the ima",
        ),
        (
            PROCESSOR,
            {"size": {"height": 32, "width": 32}},
            "must resize the shorter side of",
        ),
        (PROCESSOR, {"do_sample_frames": True, "fps": 2}, "num_frames = None and fps = 2 is not s"),
        (PROCESSOR, {"video_processor_type": "InternVLVideoProcessor"}, "is not supported; suppor"),
    ],
    ids=["timesformer", "xclip", "pooling", "frames", "crop", "squash", "fps", "processor"],
)
def test_what_the_server_cannot_do_is_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = save_folder(videomae(), tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(timm=f"local-dir:{folder}")
    assert str(folder) in str(caught.value)


def test_the_modality_of_an_entry_must_be_that_of_its_folder(tmp_path: Path) -> None:
    folder = save_folder(videomae(), tmp_path)
    with pytest.raises(ConfigError, match=r'modality = "image", but .* of modality "video"'):
        load(timm=f"local-dir:{folder}", modality="image")
    assert load(timm=f"local-dir:{folder}", modality="video").tokens == 64
