"""What a batch gives: everything that its images want, from one forward pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from server.catalog.entries import read_catalog
from server.commands.offline import classify
from server.engine.device.forward import Floats
from server.engine.execution.in_flight import pack_rows
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
WANTS: list[OutputKind] = ["classes", "features", "source", "classes", "features"]


def normalised(pixels: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(pixels) / 255 - 0.5) / 0.25


def test_one_pass_gives_each_image_what_it_wants(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = runner.model.network
    passes = []
    outputs = network.outputs
    monkeypatch.setattr(
        network, "outputs", lambda *args, **more: passes.append(more) or outputs(*args, **more)
    )
    mixed = runner.run(PIXELS, SCHEDULES, [3, 0, 0, 2, 0], WANTS)
    assert [each["source"] for each in passes] == [True]
    with torch.inference_mode():
        features = network.embed(normalised(PIXELS), SCHEDULES)
        source = network.trace(normalised(PIXELS), SCHEDULES).source
        scores = network(normalised(PIXELS), SCHEDULES).softmax(dim=-1)
    for index, (prediction, want) in enumerate(zip(mixed, WANTS, strict=True)):
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


def test_nobody_pays_for_sources_that_nobody_wants(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = runner.model.network
    asked = []
    outputs = network.outputs
    monkeypatch.setattr(
        network,
        "outputs",
        lambda *args, **more: asked.append(more["source"]) or outputs(*args, **more),
    )
    runner.run(PIXELS[:2], SCHEDULES[:2], [1, 0], ["classes", "features"])
    assert asked == [False]


def test_floats_and_bytes_share_a_batch(runner: Runner) -> None:
    """An image is the same to the model whether it comes normalised or not; what its bytes would be
    is overwritten.
    """
    expected = runner.run(PIXELS, SCHEDULES, [3] * 5)
    rubbish = PIXELS.copy()
    rubbish[[1, 3, 4]] = 255
    mixed = Floats([1, 3, 4], normalised(PIXELS[[1, 3, 4]]).numpy())
    for one, other in zip(
        runner.run(rubbish, SCHEDULES, [3] * 5, floats=mixed), expected, strict=True
    ):
        assert one.classes == other.classes
        assert one.scores == pytest.approx(other.scores, abs=1e-6)
    passes = runner.run(rubbish, SCHEDULES, [3] * 5)
    assert passes[1].scores != pytest.approx(expected[1].scores, abs=1e-3)


def test_the_activation_makes_the_scores(tiny: LoadedModel) -> None:
    logits = Runner(tiny, CPU).logits(PIXELS, SCHEDULES)
    for activation, expected in (
        ("softmax", logits.softmax(dim=-1)),
        ("sigmoid", logits.sigmoid()),
        ("none", logits),
    ):
        model = replace(tiny, spec=tiny.spec.model_copy(update={"activation": activation}))
        for row, prediction in zip(
            expected, Runner(model, CPU).run(PIXELS, SCHEDULES, [3] * 5), strict=True
        ):
            best = row.sort(descending=True)
            assert prediction.classes == tuple(best.indices.tolist())
            assert prediction.scores == pytest.approx(best.values.tolist(), abs=1e-5)


def test_a_model_without_a_classifier(tiny_folder: Path, tmp_path: Path) -> None:
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
    predictions = runner.run(PIXELS, [Schedule.constant(0)] * 5, [0] * 5, ["features"] * 5)
    found = np.stack([np.frombuffer(prediction.features, "<f4") for prediction in predictions])
    with torch.inference_mode():
        np.testing.assert_allclose(found, vit(normalised(PIXELS)).numpy(), rtol=1e-4, atol=1e-4)
    settings = ModelSettings(config=tmp_path / "models.toml", threads=1)
    with pytest.raises(ConfigError, match="model tiny has no classifier"):
        classify(settings, next(EXAMPLES.glob("*.png")), "0", "", 5)


def test_bytes_are_little_endian_and_only_of_rows_that_are_wanted() -> None:
    values = np.array([[1.0, -2.5], [3.0, 4.0]], np.float32)
    assert pack_rows(values, [True, False]) == [b"\x00\x00\x80\x3f\x00\x00\x20\xc0", b""]
    assert pack_rows(values.astype(np.int32), [False, True]) == [b"", b"\x03\0\0\0\x04\0\0\0"]
    assert pack_rows(values, [False, False]) == [b"", b""]
