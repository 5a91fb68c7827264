"""Folders of transformers' AST: both generations of key names, and what its files decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from server.errors import ConfigError
from server.media.transforms import AudioTransform
from tests.server.engine.loading import tiny_transformers
from tests.server.engine.loading.tiny_sounds import (
    FRAMES,
    assert_same,
    edit_json,
    hf,
    load,
    save_folder,
    spectrograms,
    transformers_ast,
)

INPUTS = spectrograms(128, FRAMES)


@torch.no_grad()
def expected_logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(INPUTS[:, 0].transpose(1, 2)).logits
    return logits


def test_a_folder_decides_everything(tmp_path: Path) -> None:
    model = transformers_ast()
    folder = save_folder(model, tmp_path, mean=-6.6, std=5.4)
    loaded = load(timm=f"local-dir:{folder}")
    assert_same(loaded, INPUTS, expected_logits(model))
    assert loaded.transform == AudioTransform(
        FRAMES, -6.6, 5.4, time_last=True, subtract_mean=False
    )
    assert loaded.labels == ("bell", "dog", "rain")
    assert loaded.activation == "sigmoid"
    assert loaded.levels == (0, 1, 2, 4, 5)  # shares of 62 tokens


def test_the_names_of_modules_load_too(tmp_path: Path) -> None:
    model = transformers_ast()
    folder = save_folder(model, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert any("layers.0.attention.q_proj" in key for key in model.state_dict())
    assert_same(load(timm=f"local-dir:{folder}"), INPUTS, expected_logits(model))


@torch.no_grad()
def test_a_model_without_a_classifier_gives_features(tmp_path: Path) -> None:
    model = transformers_ast(kind=hf.ASTModel)
    loaded = load(timm=f"local-dir:{save_folder(model, tmp_path)}")
    pooled = model(INPUTS[:, 0].transpose(1, 2)).pooler_output
    torch.testing.assert_close(loaded.network.embed(INPUTS), pooled, rtol=1e-4, atol=1e-5)
    assert loaded.labels == ()


@pytest.mark.parametrize(
    ("problem_type", "activation"),
    [("single_label_classification", "softmax"), ("multi_label_classification", "sigmoid")],
)
def test_the_kind_of_problem_decides_the_activation(
    tmp_path: Path, problem_type: str, activation: str
) -> None:
    folder = save_folder(transformers_ast(problem_type=problem_type), tmp_path)
    assert load(timm=f"local-dir:{folder}").activation == activation
    assert load(timm=f"local-dir:{folder}", activation="none").activation == "none"


def test_without_normalisation_values_stay(tmp_path: Path) -> None:
    folder = save_folder(transformers_ast(), tmp_path, do_normalize=False)
    transform = load(timm=f"local-dir:{folder}").transform
    assert isinstance(transform, AudioTransform)
    assert (transform.mean, 2 * transform.std) == (0, 1)


def test_without_its_preprocessor_the_defaults_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_folder(transformers_ast(), tmp_path)
    (folder / "preprocessor_config.json").unlink()
    transform = load(timm=f"local-dir:{folder}").transform
    assert isinstance(transform, AudioTransform)
    assert transform.mean == pytest.approx(-4.2677393)
    assert "as ASTFeatureExtractor does by default" in caplog.text


def test_a_longer_window_loads(tmp_path: Path) -> None:
    folder = save_folder(transformers_ast(), tmp_path)
    loaded = load(timm=f"local-dir:{folder}", img_size=[128, 104])
    assert loaded.transform.size == (1, 128, 104)
    assert loaded.grid == (12, 9)


@pytest.mark.parametrize(
    ("file", "changes", "sentence"),
    [
        ("preprocessor_config.json", {"sampling_rate": 8000}, "sampling_rate = 8000 is not 16000"),
        ("preprocessor_config.json", {"num_mel_bins": 96}, "num_mel_bins = 96 is not 128"),
        (
            "preprocessor_config.json",
            {"max_length": 100},
            "max_length = 100 is not 64, the m",
        ),
        ("preprocessor_config.json", {"std": 0}, r"std = 0\.0 must be greater than 0"),
        ("preprocessor_config.json", {"mean": "x"}, "mean = 'x' is no number"),
        (
            "preprocessor_config.json",
            {"feature_extractor_type": "MAESTFeatureExtractor"},
            "MAESTFeatureExtractor is not supported; supported: ASTFeatureExtractor",
        ),
        ("config.json", {"num_mel_bins": 96}, "num_mel_bins = 96 is not 128"),
        ("config.json", {"hidden_act": "mish"}, "hidden_act = 'mish' is not supported"),
    ],
    ids=["rate", "mel", "length", "std", "mean", "maest", "config-mel", "activation"],
)
def test_other_front_ends_are_refused_by_name(
    tmp_path: Path, file: str, changes: dict[str, Any], sentence: str
) -> None:
    folder = save_folder(transformers_ast(), tmp_path)
    edit_json(folder / file, **changes)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(timm=f"local-dir:{folder}")
    assert file in str(caught.value)


def test_the_modality_of_an_entry_must_be_that_of_its_folder(tmp_path: Path) -> None:
    folder = save_folder(transformers_ast(), tmp_path / "sound")
    with pytest.raises(ConfigError, match=r'modality = "image", but .* of modality "audio"'):
        load(timm=f"local-dir:{folder}", modality="image")
    picture = tiny_transformers.make(tiny_transformers.vit)
    picture.save_pretrained(tmp_path / "picture")
    with pytest.raises(ConfigError, match=r'modality = "audio", but .* of modality "image"'):
        load(timm=f"local-dir:{tmp_path / 'picture'}", modality="audio")
