"""Batches of a CLIP or SigLIP whose images are compared with label sets of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from server.catalog.entries import ModelSpec
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.label_vectors import LabelVectors, write_label_vectors
from server.engine.loading.model_loader import load_model
from server.errors import ConfigError
from tests.server.tiny_pairs import (
    BIRDS,
    COLOURS,
    images,
    logits_per_image,
    make_pair,
    normalised,
    probabilities,
    save_pair,
    tokens_of,
)
from tome_core.schedule import Schedule

CPU = torch.device("cpu")
PICTURES = images(3)
R0 = Schedule.constant(0)


@torch.no_grad()
def label_vectors(model: Any, labels: tuple[str, ...]) -> LabelVectors:
    embedded = model.get_text_features(**tokens_of(model, labels)).pooler_output
    bias = float(model.logit_bias) if model.config.model_type == "siglip" else None
    vectors = functional.normalize(embedded, dim=-1)
    return LabelVectors(labels, vectors, float(model.logit_scale.exp()), bias)


def write(folder: Path, model: Any, **label_sets: tuple[str, ...]) -> dict[str, Path]:
    files = {name: folder / f"{name}.safetensors" for name in label_sets}
    for name, labels in label_sets.items():
        write_label_vectors(files[name], label_vectors(model, labels))
    return files


def load(folder: Path, text: Any, **fields: Any) -> Runner:
    spec = ModelSpec(name="m", timm=f"local-dir:{folder}", text=text, **fields)
    return Runner(load_model(spec, CPU, torch.float32, levels=(0,)), CPU)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_each_image_has_its_own_labels(tmp_path: Path, kind: str) -> None:
    model = make_pair(kind)
    text = write(tmp_path, model, birds=BIRDS, colours=COLOURS, crow=("crow",))
    runner = load(save_pair(model, tmp_path / kind), text)
    values = normalised(PICTURES, kind)
    wanted = [("", 3, BIRDS), ("colours", 9, COLOURS), ("crow", 2, ("crow",))]
    inputs = [
        ImageInput(pixels.numpy(), R0, top_k, label_set=name)
        for pixels, (name, top_k, _) in zip(values, wanted, strict=True)
    ]
    answers = runner.run(inputs)
    for row, (answer, (_, top_k, labels)) in enumerate(zip(answers, wanted, strict=True)):
        logits = logits_per_image(model, values[row : row + 1], labels)
        exact = probabilities(model, logits)[0]
        best = exact.topk(min(top_k, len(labels)))
        assert answer.classes == tuple(best.indices.tolist())
        assert answer.scores == pytest.approx(best.values.tolist(), abs=1e-5)
        assert answer.finite
    alone = [runner.run([image])[0] for image in inputs]
    assert [each.classes for each in alone] == [each.classes for each in answers]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str) -> None:
    model = make_pair(kind)
    runner = load(save_pair(model, tmp_path / kind), write(tmp_path, model, birds=BIRDS))
    uint8 = PICTURES.transpose(0, 3, 1, 2).copy()
    found = runner.logits(uint8, [R0] * len(uint8))
    exact = logits_per_image(model, normalised(PICTURES, kind), BIRDS)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)


def test_a_failed_image_spoils_no_other(tmp_path: Path) -> None:
    model = make_pair("clip")
    text = write(tmp_path, model, birds=BIRDS, colours=COLOURS)
    runner = load(save_pair(model, tmp_path / "clip"), text)
    values = normalised(PICTURES, "clip").numpy()
    values[1] = float("nan")
    inputs = [ImageInput(pixels, R0, 2, label_set="colours") for pixels in values]
    assert [each.finite for each in runner.run(inputs)] == [True, False, True]


def test_vectors_of_another_model_are_refused(tmp_path: Path) -> None:
    siglip = write(tmp_path, make_pair("siglip"), birds=BIRDS)
    folder = save_pair(make_pair("clip"), tmp_path / "clip")
    with pytest.raises(ConfigError, match="have 32 numbers, the model's embedding has 24"):
        load(folder, siglip)


def test_a_clip_without_its_projection_is_refused(tmp_path: Path) -> None:
    model = make_pair("clip")
    text = write(tmp_path, model, birds=BIRDS)
    # Of the same type, but what it saves ends before the projection.
    model.vision_model.save_pretrained(tmp_path / "vision")
    with pytest.raises(ConfigError, match=r"text needs visual_projection\.weight"):
        load(tmp_path / "vision", text)
