"""The runner: all outputs that the images of a batch request, from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from server.catalog.entries import read_catalog
from server.commands.classify import classify
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import LoadedModel, load_model
from server.errors import ConfigError
from server.ipc.messages import OutputKind
from server.settings import ModelSettings
from tests.server.engine.tiny import ARGUMENTS
from tome_core import Schedule

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[4] / "examples"
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
SCHEDULES = [Schedule.constant(r) for r in (0, 4, 4, 2, 0)]
OUTPUT_KINDS: list[OutputKind] = ["classes", "features", "source", "classes", "features"]


def inputs(
    top_k: Sequence[int] = (3,) * 5,
    output_kinds: Sequence[OutputKind] = ("classes",) * 5,
) -> list[ImageInput]:
    return list(map(ImageInput, PIXELS, SCHEDULES, top_k, output_kinds))


def normalised(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels) / 255 - 0.5) / 0.25


def test_one_forward_pass_gives_each_image_the_output_it_requests(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = runner.model.network
    passes = []
    outputs = network.outputs

    def record(*args: Any, **more: Any) -> Any:
        passes.append(more)
        return outputs(*args, **more)

    monkeypatch.setattr(network, "outputs", record)
    mixed = runner.run(inputs(top_k=[3, 0, 0, 2, 0], output_kinds=OUTPUT_KINDS))
    assert [each["source"] for each in passes] == [True]
    with torch.inference_mode():
        features = network.embed(normalised(PIXELS), SCHEDULES)
        source = network.trace(normalised(PIXELS), SCHEDULES).source
        scores = network(normalised(PIXELS), SCHEDULES).softmax(dim=-1)
    for index, (prediction, want) in enumerate(zip(mixed, OUTPUT_KINDS, strict=True)):
        assert prediction.finite
        assert bool(prediction.classes) == (want == "classes")
        assert bool(prediction.features) == (want == "features")
        assert bool(prediction.source) == (want == "source")
        if want == "classes":
            best = scores[index].topk(len(prediction.classes))
            assert prediction.classes == tuple(best.indices.tolist())
            assert prediction.scores == pytest.approx(best.values.tolist(), abs=1e-6)
        elif want == "features":
            found = np.frombuffer(prediction.features, "<f4")
            np.testing.assert_allclose(found, features[index].numpy(), rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(
                np.frombuffer(prediction.source, "<i4"), source[index].numpy()
            )


def test_source_maps_are_computed_only_if_an_image_requests_them(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = runner.model.network
    requested = []
    outputs = network.outputs

    def record(*args: Any, **more: Any) -> Any:
        requested.append(more["source"])
        return outputs(*args, **more)

    monkeypatch.setattr(network, "outputs", record)
    runner.run(inputs(top_k=[1, 0, 0, 1, 0], output_kinds=OUTPUT_KINDS)[:2])
    assert requested == [False]


def test_normalised_images_and_bytes_share_a_batch(runner: Runner) -> None:
    expected = runner.run(inputs())
    images = inputs()
    for row in (1, 3, 4):
        images[row] = images[row]._replace(pixels=normalised(PIXELS[row]).numpy())
    for prediction, same in zip(runner.run(images), expected, strict=True):
        assert prediction.classes == same.classes
        assert prediction.scores == pytest.approx(same.scores, abs=1e-6)


def test_scores_follow_from_the_activation_of_the_model(tiny: LoadedModel) -> None:
    logits = Runner(tiny, CPU).logits(PIXELS, SCHEDULES)
    for activation, expected in (
        ("softmax", logits.softmax(dim=-1)),
        ("sigmoid", logits.sigmoid()),
        ("none", logits),
    ):
        model = replace(tiny, activation=activation)
        for row, prediction in zip(expected, Runner(model, CPU).run(inputs()), strict=True):
            best = row.sort(descending=True)
            assert prediction.classes == tuple(best.indices.tolist())
            assert prediction.scores == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_model_without_a_classifier_gives_features_only(
    tiny_folder: Path, tmp_path: Path
) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", **{**ARGUMENTS, "num_classes": 0}).eval()
    save_file(vit.state_dict(), tmp_path / "tiny.safetensors")
    entry = (
        (tiny_folder / "models.toml")
        .read_text()
        .replace('labels = "labels.txt"', "num_classes = 0")
    )
    (tmp_path / "models.toml").write_text(entry)
    runner = Runner(
        load_model(read_catalog(tmp_path / "models.toml", ())[0], CPU, torch.float32), CPU
    )
    assert runner.model.labels == ()
    assert runner.seconds([Schedule.constant(4)] * 2) > 0
    predictions = runner.run([ImageInput(pixels, SCHEDULES[0], 0, "features") for pixels in PIXELS])
    found = np.stack([np.frombuffer(prediction.features, "<f4") for prediction in predictions])
    with torch.inference_mode():
        np.testing.assert_allclose(found, vit(normalised(PIXELS)).numpy(), rtol=1e-4, atol=1e-4)
    settings = ModelSettings(config=tmp_path / "models.toml", threads=1)
    with pytest.raises(ConfigError, match="model tiny has no classifier"):
        classify(settings, [next(EXAMPLES.glob("*.png"))], "0", "", 5)
