"""Files of label sets: what is read, what is refused, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from server.catalog.entries import ModelSpec
from server.engine.loading.label_vectors import (
    LabelVectors,
    activation_of,
    read_label_sets,
    read_label_vectors,
    write_label_vectors,
)
from server.errors import ConfigError

LABELS = ("ant", "bee", "caf\u00e9")
VECTORS = functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))


def save(
    path: Path, tensors: dict[str, Tensor] | None = None, labels: Any = LABELS, **more: Tensor
) -> Path:
    text = labels if isinstance(labels, str) else json.dumps(labels)
    save_file({"vectors": VECTORS, **more} if tensors is None else tensors, path, {"labels": text})
    return path


def spec_of(text: Any, **fields: Any) -> ModelSpec:
    return ModelSpec(name="m", timm="vit_tiny_patch16_224", text=text, **fields)


@pytest.mark.parametrize(
    ("scale", "bias", "activation"),
    [(100.0, None, "softmax"), (10.0, -12.5, "sigmoid"), (None, None, "cosine")],
)
def test_what_is_written_is_read(
    tmp_path: Path, scale: float | None, bias: float | None, activation: str
) -> None:
    path = tmp_path / "labels.safetensors"
    write_label_vectors(path, LabelVectors(LABELS, VECTORS, scale, bias))
    found = read_label_vectors(path)
    assert (found.labels, found.scale, found.bias) == (LABELS, scale, bias)
    assert torch.equal(found.vectors, VECTORS)
    assert found.activation == activation


def test_a_number_may_be_a_tensor_of_one_dimension(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", logit_scale=torch.tensor([7.0]))
    assert read_label_vectors(path).scale == 7


LONG = 1.01 * VECTORS
NAN = torch.cat([VECTORS[:2], torch.full((1, 4), torch.nan)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tensors": {"logit_scale": torch.ones(())}}, "lacks vectors"),
        ({"projection": torch.ones(2)}, "has projection, which is no part of a label set"),
        ({"labels": "[1"}, "lacks labels in its metadata"),
        ({"labels": ["a", 1, "c"]}, "lacks labels in its metadata: a JSON list of the texts"),
        ({"labels": ["a", "", "c"]}, "none of them empty"),
        ({"labels": ["a", "b"]}, "has 2 labels for 3 vectors"),
        ({"tensors": {"vectors": VECTORS.half()}}, r"must be float32 .* not float16"),
        ({"tensors": {"vectors": VECTORS[0]}}, r"must be float32 of shape \(labels, D\), not .*4,"),
        ({"tensors": {"vectors": LONG}}, "must have unit length; that of 'ant' has 1.01"),
        ({"tensors": {"vectors": NAN}}, "that of 'caf\u00e9' has nan"),
        ({"logit_scale": torch.tensor(0.0)}, "logit_scale is 0, and must be greater than 0"),
        ({"logit_scale": torch.tensor(torch.inf)}, "logit_scale must be one finite number"),
        ({"logit_bias": torch.ones(2)}, "logit_bias must be one finite number"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, arguments: Any, sentence: str) -> None:
    path = save(tmp_path / "a.safetensors", **arguments)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_label_vectors(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("ant\nbee\n")
    with pytest.raises(ConfigError, match=r"is no safetensors file.*tome-serve text. writes such"):
        read_label_vectors(path)


def test_one_file_is_the_default_label_set(tmp_path: Path) -> None:
    spec = spec_of(save(tmp_path / "a.safetensors"))
    assert list(read_label_sets(spec)) == ["default"]
    assert activation_of(spec, read_label_sets(spec)) == "cosine"
    said = spec_of(spec.text, activation="softmax")
    assert activation_of(said, read_label_sets(said)) == "softmax"


def test_files_must_agree_about_the_activation(tmp_path: Path) -> None:
    one = save(tmp_path / "a.safetensors")
    other = save(tmp_path / "b.safetensors", logit_scale=torch.tensor(2.0))
    with pytest.raises(ConfigError, match=r"different activations \(a cosine, b softmax\)"):
        read_label_sets(spec_of({"a": one, "b": other}))
    assert len(read_label_sets(spec_of({"a": one, "b": other}, activation="none"))) == 2


def test_labels_and_text_exclude_each_other(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="leave labels out"):
        read_label_sets(spec_of(path, labels=path))


def test_cosine_needs_text() -> None:
    with pytest.raises(ConfigError, match="is for models with text"):
        read_label_sets(spec_of(None, activation="cosine"))
    assert read_label_sets(spec_of(None)) == {}
