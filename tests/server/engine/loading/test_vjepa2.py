"""V-JEPA 2: folders of transformers beside its own classes, and files of the authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.loading.transformers_names import transformers_to_timm
from server.errors import ConfigError
from server.media.transforms import VideoTransform
from tests.server.engine.loading.published import randomise
from tests.server.engine.loading.tiny_sounds import edit_json
from tests.server.engine.loading.tiny_videos import LABELS, assert_same, clips, hf, load

FRAMES = 8
SIDE = 32
SMALL: dict[str, Any] = {
    "embed_dim": 36,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 3.0,
    "frames": FRAMES,
}
ENTRY: dict[str, Any] = {
    "timm": "vjepa2_vit_large_patch16_256",
    "img_size": SIDE,
    "model_args": SMALL,
}
CLIPS = clips(2, FRAMES, SIDE)


def make(kind: Any = hf.VJEPA2ForVideoClassification, **options: Any) -> Any:
    """A tiny V-JEPA 2 of transformers with three labels."""
    sizes = {
        "crop_size": SIDE,
        "frames_per_clip": FRAMES,
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "mlp_ratio": 3.0,
        "num_pooler_layers": 2,
        "pred_hidden_size": 12,
        "pred_num_attention_heads": 2,
        "pred_num_hidden_layers": 1,
        "id2label": LABELS,
    }
    return randomise(kind(hf.VJEPA2Config(**{**sizes, **options})))


def save_folder(model: Any, folder: Path, **settings: Any) -> Path:
    """Save a model of transformers, and its video processor."""
    model.save_pretrained(folder)
    hf.VJEPA2VideoProcessor(**{"crop_size": SIDE, **settings}).save_pretrained(folder)
    return folder


@torch.no_grad()
def encode(model: Any) -> Tensor:
    """The mean of the encoder's tokens."""
    tokens: Tensor = model.get_vision_features(CLIPS)
    return tokens.mean(dim=1)


@torch.no_grad()
def classify(model: Any) -> Tensor:
    logits: Tensor = model(CLIPS).logits
    return logits


@pytest.mark.parametrize("options", [{}, {"hidden_act": "gelu_new", "qkv_bias": False}])
def test_a_folder_decides_everything(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make(**options)
    loaded = load(levels=None, timm=f"local-dir:{save_folder(model, tmp_path)}")
    assert_same(loaded, CLIPS, classify(model))
    assert loaded.transform == VideoTransform(
        frames=FRAMES,
        tubelet=2,
        height=SIDE,
        width=SIDE,
        resize=36,  # 32 * 256 / 224, rounded down
    )
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.std == pytest.approx((0.229, 0.224, 0.225))
    assert loaded.labels == ("jump", "run", "wave")
    assert (loaded.tokens, loaded.prefix, loaded.grid) == (16, 0, (8, 2))


def test_an_optimised_network_passes_its_self_check(tmp_path: Path) -> None:
    loaded = load(levels=(0, 2, 4), timm=f"local-dir:{save_folder(make(), tmp_path)}")
    assert loaded.acceleration in ("kernels", "operators")  # and not the plain network


def test_a_model_without_a_classifier_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    model = make(hf.VJEPA2Model)
    loaded = load(timm=f"local-dir:{save_folder(model, tmp_path)}")
    assert_same(loaded, CLIPS, encode(model))
    assert loaded.labels == ()


def test_an_entry_takes_shorter_and_larger_clips(tmp_path: Path) -> None:
    folder = save_folder(make(), tmp_path)
    loaded = load(timm=f"local-dir:{folder}", img_size=[48, 64], model_args={"frames": 4})
    assert loaded.transform.size == (3, 4 * 48, 64)
    assert loaded.grid == (2 * 3, 4)


def test_the_processor_computes_its_size_from_its_crop(tmp_path: Path) -> None:
    folder = save_folder(make(), tmp_path)
    name = "video_preprocessor_config.json"
    edit_json(folder / name, size={"shortest_edge": 99}, image_mean=[0.5] * 3)
    loaded = load(timm=f"local-dir:{folder}")
    assert isinstance(loaded.transform, VideoTransform)
    assert loaded.transform.resize == 36
    assert loaded.mean == (0.5, 0.5, 0.5)
    (folder / name).unlink()
    without = load(timm=f"local-dir:{folder}")
    assert without.transform == loaded.transform
    assert without.mean == pytest.approx((0.485, 0.456, 0.406))


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("config.json", {"in_chans": 0}, "num_channels = 0 is no positive number"),
        ("config.json", {"frames_per_clip": "8"}, "num_frames = '8' is no positive number"),
        ("config.json", {"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
        ("config.json", {"num_pooler_layers": 3}, r"lacks attn_pool\.blocks\.2"),
        ("config.json", {"crop_size": 64}, "crop them to 64 x 64"),
        (
            "video_preprocessor_config.json",
            {"video_processor_type": "LlavaVideoProcessor"},
            "LlavaVideoProcessor is not supported",
        ),
    ],
)
def test_what_the_server_cannot_do_is_refused(
    tmp_path: Path, file: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = save_folder(make(), tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(ConfigError, match=sentence):
        load(timm=f"local-dir:{folder}")


def authors_names(encoder: Any) -> dict[str, Tensor]:
    """The weights of transformers' encoder as the authors save them, in a distributed wrapper."""
    names = {
        "embeddings.patch_embeddings.": "patch_embed.",
        "layer.": "blocks.",
        "attention.": "attn.",
        "layernorm.": "norm.",
    }
    renamed = {}
    for key, value in encoder.state_dict().items():
        for theirs, authors in names.items():
            key = key.replace(theirs, authors)
        renamed[key] = value
    for key in [key for key in renamed if ".query." in key]:
        parts = [renamed.pop(key.replace("query", part)) for part in ("query", "key", "value")]
        renamed[key.replace("query", "qkv")] = torch.cat(parts)
    return {f"module.backbone.{key}": value for key, value in renamed.items()}


def save_authors(path: Path, **more: Any) -> tuple[Any, Path]:
    """Save an encoder with its average, of which the authors load the average."""
    average = make(hf.VJEPA2Model)
    tensors = authors_names(average.encoder)
    trained = {key: value + 1 for key, value in tensors.items()}
    content = {
        "encoder": trained,
        "predictor": {"module.backbone.predictor_embed.weight": torch.zeros(3, 3)},
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}},
        "target_encoder": tensors | {f"module.backbone.{key}": more[key] for key in more},
        "epoch": 40,
        "loss": 0.5,
    }
    torch.save(content, path)
    return average, path


def test_a_file_of_the_authors_gives_features(tmp_path: Path) -> None:
    model, path = save_authors(tmp_path / "vitl.pt")
    loaded = load(checkpoint=path, **ENTRY)
    assert_same(loaded, CLIPS, encode(model))
    assert loaded.labels == ()
    assert loaded.transform == VideoTransform(
        frames=FRAMES, tubelet=2, height=SIDE, width=SIDE, resize=36
    )
    assert loaded.mean == pytest.approx((0.485, 0.456, 0.406))


def test_a_file_of_an_encoder_alone_loads(tmp_path: Path) -> None:
    """As the files of V-JEPA 2-AC, which have no average."""
    model = make(hf.VJEPA2Model)
    path = tmp_path / "vjepa2-ac-vitg.pt"
    predictor = {"module.predictor_embed.weight": torch.zeros(3, 3)}
    torch.save({"encoder": authors_names(model.encoder), "predictor": predictor}, path)
    assert_same(load(checkpoint=path, **ENTRY), CLIPS, encode(model))


def test_positions_that_the_model_does_not_read_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, path = save_authors(tmp_path / "vitl.pt", pos_embed=torch.ones(1, 16, 36))
    assert_same(load(checkpoint=path, **ENTRY), CLIPS, encode(model))
    assert "if the file is of the first V-JEPA" in caplog.text


def test_its_successor_is_refused(tmp_path: Path) -> None:
    _, path = save_authors(tmp_path / "vitl.pt", video_mod_embed=torch.ones(1, 1, 36))
    with pytest.raises(ConfigError, match=r"V-JEPA 2\.1 \(video_mod_embed\)"):
        load(checkpoint=path, **ENTRY)


def test_a_file_without_an_encoder_is_refused(tmp_path: Path) -> None:
    torch.save({"pooler.query_tokens": torch.zeros(1, 1, 36)}, tmp_path / "probe.pt")
    with pytest.raises(ConfigError, match=r"holds no V-JEPA 2: it has pooler\.query_tokens"):
        load(checkpoint=tmp_path / "probe.pt", **ENTRY)


@pytest.mark.parametrize("frames", ["8", -8, 8.0])
def test_frames_that_are_no_number_of_frames_are_refused(tmp_path: Path, frames: Any) -> None:
    _, path = save_authors(tmp_path / "vitl.pt")
    with pytest.raises(ConfigError, match=f"model_args.frames has {frames!r}, which is no pos"):
        load(**{**ENTRY, "checkpoint": path, "model_args": {**SMALL, "frames": frames}})


def test_a_file_without_its_folder_is_refused(tmp_path: Path) -> None:
    folder = save_folder(make(), tmp_path)
    with pytest.raises(ConfigError, match='serve their folder with timm = "local-dir:FOLDER"'):
        load(checkpoint=folder / "model.safetensors", **ENTRY)


def test_a_folder_of_timm_has_a_classifier_too(tmp_path: Path) -> None:
    model = make()
    tensors = transformers_to_timm(model.state_dict())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = {
        "architecture": "vjepa2_vit_large_patch16_256",
        "pretrained_cfg": {"num_classes": 3},
        "num_classes": 3,
        "model_args": {**SMALL, "img_size": SIDE, "pooler_depth": 2},
        "label_names": list(LABELS.values()),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load(timm=f"local-dir:{tmp_path}")
    assert_same(loaded, CLIPS, classify(model))
    assert loaded.labels == ("jump", "run", "wave")
