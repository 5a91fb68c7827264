"""Models of video: every file that loads gives its authors' results, any other is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.errors import ConfigError
from server.media.transforms import VideoTransform
from tests.server.engine.loading.published import CLASSES, randomise
from tests.server.engine.loading.published_videos import (
    MaeSt,
    VideoMae,
    VideoMaePretraining,
)
from tests.server.engine.loading.tiny_videos import (
    FRAMES,
    SIDE,
    assert_same,
    clips,
    load,
    save_folder,
    videomae,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
ENTRY: dict[str, Any] = {
    "timm": "video_vit_tiny_patch16",
    "img_size": SIDE,
    "model_args": {**SMALL, "frames": FRAMES},
}
INPUTS = clips()


def save(model: torch.nn.Module, path: Path, wrapper: str = "model") -> Path:
    torch.save({wrapper: model.state_dict(), "epoch": 90}, path)
    return path


@torch.no_grad()
def expected_output(model: Any, inputs: Tensor = INPUTS) -> Tensor:
    output: Tensor = model(inputs.transpose(1, 2))
    return output


def transform(**changes: Any) -> VideoTransform:
    sizes = {"frames": FRAMES, "tubelet": 2, "height": SIDE, "width": SIDE, "resize": SIDE}
    return VideoTransform(**{**sizes, **changes})


def test_videomae_of_its_authors(tmp_path: Path) -> None:
    model = randomise(VideoMae())
    loaded = load(**ENTRY, checkpoint=save(model, tmp_path / "videomae.pth", "module"))
    assert_same(loaded, INPUTS, expected_output(model))
    assert loaded.transform == transform()
    assert (loaded.mean, loaded.std) == IMAGENET
    assert loaded.labels == tuple(map(str, range(CLASSES)))
    assert (loaded.tokens, loaded.prefix, loaded.grid) == (64, 0, (16, 4))


def test_other_patches_and_widths_are_read_from_the_file(tmp_path: Path) -> None:
    """As those of VideoMAEv2's giant model: patches of 14, and an MLP of 48/11 of the width."""
    model = randomise(VideoMae(patch=4, mlp_width=139))
    loaded = load(**ENTRY, checkpoint=save(model, tmp_path / "giant.pth"))
    assert_same(loaded, INPUTS, expected_output(model))
    assert loaded.tokens == 256


def test_a_pre_trained_videomae_gives_features(tmp_path: Path) -> None:
    model = randomise(VideoMaePretraining())
    loaded = load(**ENTRY, checkpoint=save(model, tmp_path / "pretrained.pth"))
    assert_same(loaded, INPUTS, expected_output(model))
    assert loaded.labels == ()


@pytest.mark.parametrize("separate", [True, False], ids=["separate", "joint"])
@pytest.mark.parametrize("classes", [0, CLASSES], ids=["pre-trained", "fine-tuned"])
def test_mae_st_of_its_authors(tmp_path: Path, classes: int, separate: bool) -> None:
    model = randomise(MaeSt(FRAMES // 2, 16, classes, separate))
    loaded = load(**ENTRY, checkpoint=save(model, tmp_path / "mae_st.pth", "model_state"))
    assert_same(loaded, INPUTS, expected_output(model))
    assert len(loaded.labels) == classes
    assert (loaded.tokens, loaded.prefix) == (65, 1)
    assert (loaded.mean, loaded.std) == ((0.45,) * 3, (0.225,) * 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"class_token": True, "global_pool": "token"}, {"fc_norm": False}, {"num_classes": 0}],
    ids=["mean", "class-token", "norm-first", "features"],
)
def test_what_timm_saved(tmp_path: Path, options: dict[str, Any]) -> None:
    sizes = {"img_size": SIDE, "frames": FRAMES, "patch_size": 8, "num_classes": CLASSES}
    model: Any = randomise(timm.create_model(ENTRY["timm"], **{**SMALL, **sizes, **options}))
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = model(INPUTS.transpose(1, 2).flatten(2, 3))
    loaded = load(**ENTRY, checkpoint=tmp_path / "model.safetensors")
    assert_same(loaded, INPUTS, expected)
    # timm's own crop: 224 of 256 pixels
    assert loaded.transform == transform(resize=36)


def test_a_folder_of_timm_decides_everything(tmp_path: Path) -> None:
    model: Any = randomise(
        timm.create_model(
            ENTRY["timm"], img_size=SIDE, frames=4, patch_size=8, num_classes=3, **SMALL
        )
    )
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "video_vit_tiny_patch16", "num_classes": 3, "label_names": ["a", "b",'
        ' "c"], "pretrained_cfg": {"mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "crop_pct":'
        ' 0.8, "interpolation": "bicubic"}, "model_args": {"img_size": 32, "frames": 4,'
        ' "embed_dim": 32, "depth": 2, "num_heads": 2}}'
    )
    loaded = load(timm=f"local-dir:{tmp_path}")
    inputs = clips(frames=4)
    with torch.no_grad():
        assert_same(loaded, inputs, model(inputs.transpose(1, 2).flatten(2, 3)))
    assert loaded.transform == transform(frames=4, resize=40, interpolation="bicubic")
    assert (loaded.mean, loaded.labels) == ((0.4,) * 3, ("a", "b", "c"))


def test_an_entry_says_more_than_the_file(tmp_path: Path) -> None:
    path = save(randomise(VideoMae()), tmp_path / "videomae.pth")
    fields = {"sampling": "uniform", "stride": 3, "clips": 2, "crops": 3, "mean": [0.5]}
    more = {"interpolation": "bicubic", "crop_pct": 0.8, "levels": [20]}
    loaded = load(**{**ENTRY, **fields, **more}, checkpoint=path)
    assert loaded.transform == transform(
        sampling="uniform", stride=3, clips=2, crops=3, interpolation="bicubic", resize=40
    )
    assert loaded.mean == (0.5,) * 3
    assert loaded.levels == (0, 20)


def test_levels_are_shares_of_the_tokens(tmp_path: Path) -> None:
    path = save(randomise(VideoMae()), tmp_path / "videomae.pth")
    assert load(**ENTRY, levels=None, checkpoint=path).levels == (0, 1, 3, 4, 5)


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"img_size": SIDE, "model_args": SMALL}, (FRAMES, SIDE)),
        ({"model_args": {**SMALL, "frames": FRAMES}}, (FRAMES, SIDE)),
        ({"img_size": 64, "model_args": SMALL}, (2, 64)),
        ({"model_args": {**SMALL, "img_size": SIDE}}, (FRAMES, SIDE)),
    ],
    ids=["frames", "size", "another-size", "model_args"],
)
def test_positions_tell_what_the_entry_does_not(
    tmp_path: Path, fields: dict[str, Any], size: tuple[int, int]
) -> None:
    path = save(randomise(MaeSt(FRAMES // 2, 16)), tmp_path / "mae_st.pth")
    found = load(**{"timm": ENTRY["timm"], **fields}, checkpoint=path).transform
    assert isinstance(found, VideoTransform)
    assert (found.frames, found.height) == size


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224", "modality": "video"}, "is no architecture of video; n"),
        ({"modality": "image"}, 'set modality = "video", or leave it out'),
        ({"num_classes": 7}, "set num_classes = 5"),
        ({"crop_mode": "border"}, "takes video: crop_mode is a field of images"),
        ({"img_size": 30}, "30 x 30 pixels are no whole number of tubelets of 2 frames of 8 x 8"),
        ({"model_args": {**SMALL, "frames": 7}}, "7 frames of 32 x 32 pixels are no whole number"),
        ({"model_args": {**SMALL, "frames": "8"}}, "frames has '8', which is no positive whole"),
        ({"model_args": {**SMALL, "frames": -8}}, "frames has -8, which is no positive whole"),
        ({"img_size": None, "model_args": {**SMALL, "img_size": "a"}}, "img_size has 'a', which"),
        ({"model_args": {**SMALL, "depth": 3}}, "lacks blocks.2.norm1.weight, which the model n"),
        ({"levels": [33]}, "r = 33 is more than 32"),
    ],
    ids=[
        "image",
        "modality",
        "classes",
        "crop",
        "size",
        "frames",
        "text",
        "negative",
        "side",
        "depth",
        "levels",
    ],
)
def test_a_mistake_in_the_entry_is_named(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    path = save(randomise(VideoMae()), tmp_path / "videomae.pth")
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(**{**ENTRY, "checkpoint": path, **fields})
    assert "\n" not in str(caught.value)


def test_positions_of_other_clips_are_not_resized(tmp_path: Path) -> None:
    path = save(randomise(MaeSt(FRAMES // 2, 16)), tmp_path / "mae_st.pth")
    sentence = r"the 64 positions of the file fit no clip of 4 frames of 32 x 32 pixels in tubelets"
    with pytest.raises(ConfigError, match=sentence):
        load(**{**ENTRY, "model_args": {**SMALL, "frames": 4}}, checkpoint=path)


def test_names_in_messages_are_those_of_the_file(tmp_path: Path) -> None:
    state_dict = VideoMae().state_dict()
    state_dict["blocks.0.attn.q_bias"] = torch.zeros(16)
    state_dict["blocks.0.attn.v_bias"] = torch.zeros(16)
    torch.save(state_dict, tmp_path / "videomae.pth")
    with pytest.raises(ConfigError, match=r"attn\.qkv\.bias \(blocks\.0\.attn\.q_bias in the file"):
        load(**ENTRY, checkpoint=tmp_path / "videomae.pth")


ONE = torch.zeros(1)
TUBELETS = {"patch_embed.proj.weight": torch.zeros(32, 3, 2, 8, 8)}
PATCHES = {"patch_embed.proj.weight": torch.zeros(32, 3, 8, 8)}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (
            {**PATCHES, "blocks.0.temporal_attn.qkv.weight": ONE},
            "a model of TimeSformer .*: it attends over time and over space in turn",
        ),
        (
            {**TUBELETS, "layers.0.blocks.0.attn.relative_position_bias_table": ONE},
            "a model of Video Swin .*: it attends within windows of time",
        ),
        ({**TUBELETS, "blocks.0.attn.pool_q.weight": ONE}, "a model of MViT .*: it is a pyramid"),
        ({**TUBELETS, "blocks.2.proj.weight": ONE}, "a model of Hiera .*: it is a pyramid"),
        (
            {"visual.transformer.resblocks.0.message_fc.weight": ONE},
            "a model of X-CLIP .*: it attends within each frame",
        ),
        (
            {**TUBELETS, "blocks.0.attn.scale": ONE},
            r"of VideoMAEv2 with cos_attn .*: its attention compares queries and keys by cosines",
        ),
        ({**PATCHES, "pos_embed": ONE}, "is a model of images: its patches have 2 dimensions"),
        ({"conv1.weight": ONE}, "holds no Vision Transformer of video: it has conv1.weight"),
        (
            {**TUBELETS, "blocks.0.attn.q.weight": ONE},
            "is an MAE-ST without a class token, whose mean leaves out the first tubelet",
        ),
    ],
    ids=[
        "timesformer",
        "swin",
        "mvit",
        "hiera",
        "x-clip",
        "cos-attn",
        "image",
        "other",
        "no-class-token",
    ],
)
def test_models_of_other_kinds_are_refused(
    tmp_path: Path, tensors: dict[str, Tensor], sentence: str
) -> None:
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(**ENTRY, checkpoint=tmp_path / "other.pth")
    assert "\n" not in str(caught.value)


def test_a_file_of_transformers_needs_its_folder(tmp_path: Path) -> None:
    folder = save_folder(videomae(), tmp_path)
    with pytest.raises(ConfigError, match='serve their folder with timm = "local-dir:FOLDER"'):
        load(**ENTRY, checkpoint=folder / "model.safetensors")


def test_video_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes video, and timm has no weights for that: name a"):
        load(timm="video_vit_base_patch16")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(randomise(VideoMae()), tmp_path / "videomae.pth")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"needs av .*pip install 'tome-serve\[video\]'"):
        load(**ENTRY, checkpoint=path)
