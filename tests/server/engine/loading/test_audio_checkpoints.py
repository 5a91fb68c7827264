"""Models of sound: every format that loads gives its authors' logits, any other is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from server.errors import ConfigError
from server.media.modality import Modality
from server.media.transforms import AudioTransform
from tests.server.engine.loading.tiny_sounds import (
    AST,
    AUDIOMAE,
    FRAMES,
    SMALL,
    WIDTH,
    assert_same,
    authors_ast,
    load,
    save_authors,
    spectrograms,
    timm_audiomae,
)

MEAN = -4.2677393
STD = 4.5689974
FEWEST_FRAMES = 56  # that have as many patches of AST as FRAMES
EXPANDED = torch.zeros(3, 2)


@torch.no_grad()
def test_ast_of_its_authors(tmp_path: Path) -> None:
    model = authors_ast()
    path = save_authors(model, tmp_path / "ast.pth")
    loaded = load(**AST, checkpoint=path)
    assert loaded.transform == AudioTransform(
        FEWEST_FRAMES, MEAN, STD, time_last=True, subtract_mean=True
    )
    inputs = spectrograms(128, FEWEST_FRAMES)
    assert_same(loaded, inputs, model(inputs))
    assert loaded.activation == "sigmoid"
    assert loaded.labels == ("0", "1", "2")
    assert loaded.tokens == 2 + 12 * 5
    assert loaded.grid == (12, 5)


@pytest.mark.parametrize(
    ("options", "model_args"),
    [
        ({"stride": (16, 16)}, {"stride": 16}),
        ({"stride": (12, 8)}, {"stride": [12, 8]}),
        ({"patch": (128, 2), "stride": (128, 2)}, {"stride": [128, 2]}),
        ({"average": True}, {"global_pool": "avg"}),
    ],
    ids=["no-overlap", "two-strides", "frames", "ssast"],
)
@torch.no_grad()
def test_other_patches_and_pooling_of_the_authors(
    tmp_path: Path, options: dict[str, Any], model_args: dict[str, Any]
) -> None:
    model = authors_ast(**options)
    path = save_authors(model, tmp_path / "ast.pth")
    fields = {**AST, "model_args": {**SMALL, **model_args}, "img_size": [128, FRAMES]}
    loaded = load(**fields, checkpoint=path)
    inputs = spectrograms(128, FRAMES)
    assert_same(loaded, inputs, model(inputs))


@torch.no_grad()
def test_the_published_lengths_are_known(tmp_path: Path) -> None:
    path = save_authors(authors_ast(frames=128), tmp_path / "ast.pth")
    assert load(**AST, checkpoint=path).transform.size == (1, 128, 128)


@torch.no_grad()
def test_audiomae_of_its_authors_and_of_timm(tmp_path: Path) -> None:
    model = timm_audiomae().eval()
    torch.save({"model": model.state_dict(), "epoch": 60}, tmp_path / "authors.pth")
    save_file(model.state_dict(), tmp_path / "timm.safetensors")
    inputs = spectrograms(FRAMES, 128)
    for name in ("authors.pth", "timm.safetensors"):
        loaded = load(**AUDIOMAE, checkpoint=tmp_path / name)
        assert_same(loaded, inputs, model(inputs))
        assert loaded.transform == AudioTransform(
            FRAMES, MEAN, STD, time_last=False, subtract_mean=True
        )
        assert loaded.grid == (4, 8)
        assert loaded.transform.modality is Modality.AUDIO


@torch.no_grad()
def test_a_pre_trained_audiomae_gives_features(tmp_path: Path) -> None:
    model = timm_audiomae(num_classes=0, fc_norm=False).eval()
    decoder = {"decoder_embed.weight": torch.zeros(8, WIDTH), "mask_token": torch.zeros(1, 1, 8)}
    torch.save({"model": {**model.state_dict(), **decoder}}, tmp_path / "mae.pth")
    loaded = load(**AUDIOMAE, checkpoint=tmp_path / "mae.pth")
    assert loaded.labels == ()
    inputs = spectrograms(FRAMES, 128)
    assert_same(loaded, inputs, model(inputs))


@torch.no_grad()
def test_a_folder_of_timm(tmp_path: Path) -> None:
    model = timm_audiomae().eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}, "model_args":'
        ' {"img_size": [64, 128], "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2}}'
    )
    loaded = load(timm=f"local-dir:{tmp_path}", modality="audio")
    inputs = spectrograms(FRAMES, 128)
    assert_same(loaded, inputs, model(inputs))


@torch.no_grad()
def test_an_entry_says_more_than_the_file(tmp_path: Path) -> None:
    path = save_authors(authors_ast(), tmp_path / "ast.pth")
    loaded = load(
        **AST,
        checkpoint=path,
        mean=[-6.6],
        std=[5.4],
        activation="softmax",
        subtract_mean=False,
        levels=[5, 20],
    )
    transform = loaded.transform
    assert isinstance(transform, AudioTransform)
    assert (transform.mean, transform.std, transform.subtract_mean) == (-6.6, 5.4, False)
    assert loaded.activation == "softmax"
    assert loaded.levels == (0, 5, 20)


@torch.no_grad()
def test_positions_of_longer_windows_are_stretched_in_time(tmp_path: Path) -> None:
    model = authors_ast(frames=66)  # 6 columns
    path = save_authors(model, tmp_path / "ast.pth")
    loaded = load(**AST, checkpoint=path, img_size=[128, 106])
    model.v.pos_embed.data = resample_abs_pos_embed(
        model.v.pos_embed,
        new_size=[12, 10],
        old_size=[12, 6],
        num_prefix_tokens=2,
        interpolation="bilinear",
        antialias=False,
    )
    inputs = spectrograms(128, 106)
    assert_same(loaded, inputs, model(inputs))


@pytest.mark.parametrize(("columns", "kept"), [(4, slice(1, 5)), (3, slice(2, 5))])
@torch.no_grad()
def test_positions_of_shorter_windows_are_the_middle(
    tmp_path: Path, columns: int, kept: slice
) -> None:
    model = authors_ast(frames=66)
    path = save_authors(model, tmp_path / "ast.pth")
    frames = 16 + 10 * (columns - 1)
    loaded = load(**AST, checkpoint=path, img_size=[128, frames])
    positions = model.v.pos_embed
    middle = positions[:, 2:].unflatten(1, (12, 6))[:, :, kept].flatten(1, 2)
    model.v.pos_embed.data = torch.cat([positions[:, :2], middle], dim=1)
    inputs = spectrograms(128, frames)
    assert_same(loaded, inputs, model(inputs))


@torch.no_grad()
def test_rows_are_time_for_audiomae(tmp_path: Path) -> None:
    model = timm_audiomae().eval()
    torch.save(model.state_dict(), tmp_path / "mae.pth")
    loaded = load(**AUDIOMAE, checkpoint=tmp_path / "mae.pth", img_size=[32, 128])
    kept = model.pos_embed[:, 1:].unflatten(1, (4, 8))[:, 1:3].flatten(1, 2)
    shorter = timm_audiomae(frames=32).eval()
    state_dict = {**model.state_dict(), "pos_embed": torch.cat([model.pos_embed[:, :1], kept], 1)}
    shorter.load_state_dict(state_dict)
    inputs = spectrograms(32, 128)
    assert_same(loaded, inputs, shorter(inputs))


def test_sound_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ConfigError, match="timm has no weights for that: name a checkpoint"):
        load(timm="vit_tiny_patch16_224", modality="audio")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"timm": "vit_tiny_patch16_224", "modality": "audio"}, "as AST does: name its arch"),
        ({"model_args": {**SMALL, "stride": 9}}, "do not fit the 13 patches of 16x16"),
        ({"img_size": [64, 64]}, r"its input is \(1, 64, 64\), that of a model of sound is"),
        ({"img_size": [128, 8]}, r"no patch of \(16, 16\) fits into its input of \(128, 8\)"),
        ({"mean": [0.5, 0.5]}, "mean has 2 values; a spectrogram has one channel"),
        ({"crop_pct": 0.9}, "takes sound: crop_pct is a field of images"),
        ({"levels": [0, 31]}, "levels: r = 31 is more than 30"),
        ({"modality": "image"}, 'set modality = "audio", or leave it out'),
        ({"num_classes": 5}, "set num_classes = 3"),
    ],
    ids=["vit", "stride", "mel", "short", "mean", "crop", "levels", "image", "classes"],
)
def test_a_mistake_in_the_entry_is_named(
    tmp_path: Path, fields: dict[str, Any], sentence: str
) -> None:
    path = save_authors(authors_ast(), tmp_path / "ast.pth")
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(**{**AST, "checkpoint": path, **fields})
    assert "\n" not in str(caught.value)


def test_a_stride_that_fits_is_named(tmp_path: Path) -> None:
    path = save_authors(authors_ast(frames=1024, stride=(12, 12)), tmp_path / "ast.pth")
    with pytest.raises(ConfigError, match=r"1024 frames with a stride of 12: set model_args"):
        load(**AST, checkpoint=path)


def test_patches_of_whole_frames_need_a_stride(tmp_path: Path) -> None:
    model = authors_ast(patch=(128, 2), stride=(128, 1))  # with 10, too, 128 bins are one row
    path = save_authors(model, tmp_path / "ast.pth")
    with pytest.raises(ConfigError, match=r"of 128x2, whose stride is not known: set model_args"):
        load(**AST, checkpoint=path)


@pytest.mark.parametrize(("fields", "warned"), [({}, True), ({"stride": 10}, False)])
def test_a_window_that_no_published_model_has_is_doubted(
    tmp_path: Path, fields: dict[str, int], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_authors(authors_ast(), tmp_path / "ast.pth")
    load(**{**AST, "model_args": {**SMALL, **fields}}, checkpoint=path)
    expected = f"is taken for one of {FEWEST_FRAMES} frames with a stride of 10"
    assert (expected in caplog.text) == warned


def test_models_of_other_kinds_are_refused(tmp_path: Path) -> None:
    pretrained = save_authors(
        authors_ast(), tmp_path / "ssast.pth", **{"module.cpredlayer.0.weight": EXPANDED}
    )
    with pytest.raises(ConfigError, match="SSAST pre-trained: it predicts masked patches"):
        load(**AST, checkpoint=pretrained)
    nokd = authors_ast()
    nokd.v.pos_embed = torch.nn.Parameter(torch.zeros(1, 1 + 64, WIDTH))  # AudioMAE's 8 x 8 fit
    nokd.v.dist_token = None
    for fields in (AST, AUDIOMAE):
        with pytest.raises(ConfigError, match="as SSAST's base_nokd; such are not supported"):
            load(**fields, checkpoint=save_authors(nokd, tmp_path / "nokd.pth"))
    torch.save(timm_audiomae().state_dict(), tmp_path / "mae.pth")
    with pytest.raises(ConfigError, match="is no AST, which has a class token and a distillation"):
        load(**AST, checkpoint=tmp_path / "mae.pth")
    torch.save(timm_audiomae(in_chans=3).state_dict(), tmp_path / "image.pth")
    with pytest.raises(ConfigError, match="is a model of images: its patches have 3 channels"):
        load(**AUDIOMAE, checkpoint=tmp_path / "image.pth")
    torch.save({"conv1.weight": EXPANDED}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match="holds no Vision Transformer of sound"):
        load(**AUDIOMAE, checkpoint=tmp_path / "other.pth")


def test_without_the_packages_for_sound_the_command_that_installs_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_authors(authors_ast(), tmp_path / "ast.pth")
    monkeypatch.setitem(sys.modules, "soxr", None)
    with pytest.raises(ConfigError, match=r"needs soxr .*pip install 'tome-serve\[audio\]'"):
        load(**AST, checkpoint=path)
