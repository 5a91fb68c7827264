"""The README's claims about the bundled model, on 10,000 images that it was not trained on."""

from __future__ import annotations

import pytest

from server.catalog.entries import BUNDLED, ModelSpec, read_catalog
from server.catalog.profiles import read_accuracies
from server.commands.datasets import FASHION_MNIST_DIR, open_dataset
from server.commands.evaluate import class_indices, measure
from server.commands.labelled_batches import batches
from server.commands.offline import load_runner, parse_schedule
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule

MAX_BYTES = 17_000_000

needs_dataset = pytest.mark.skipif(
    not FASHION_MNIST_DIR.is_dir(),
    reason="needs `apt install dataset-fashion-mnist`",
)


@pytest.fixture
def spec() -> ModelSpec:
    (bundled,) = read_catalog(None, ())
    return bundled


@pytest.fixture
def profile(spec: ModelSpec) -> dict[str, float]:
    """The accuracy of each schedule."""
    assert spec.profile is not None
    return read_accuracies(spec.profile)


@pytest.mark.slow
@needs_dataset
def test_the_accuracy_is_that_of_the_profile(
    spec: ModelSpec,
    profile: dict[str, float],
) -> None:
    runner = load_runner(ModelSettings(threads=1), spec)
    data = open_dataset(None)
    assert len(data) == 10_000
    indices = class_indices(data, runner.model.labels)
    schedules = [parse_schedule(runner, r) for r in ("0", "13")]
    plain, merged = measure([runner], schedules, data, indices, batch=50)
    assert plain.accuracy is not None
    assert merged.accuracy is not None
    assert plain.accuracy >= 92.5
    assert merged.accuracy >= plain.accuracy - 0.5
    assert abs(profile["0"] - plain.accuracy) <= 0.05
    assert abs(profile["13"] - merged.accuracy) <= 0.05


@pytest.mark.slow
@needs_dataset
def test_bfloat16_predicts_the_classes_of_float32(spec: ModelSpec) -> None:
    images = 1000
    float32 = load_runner(ModelSettings(dtype="float32", threads=1), spec)
    bfloat16 = load_runner(ModelSettings(dtype="bfloat16", threads=1), spec)
    data = open_dataset(None, images)
    indices = class_indices(data, float32.model.labels)
    pixels = next(batches(float32.model.transform, data, indices, images)).inputs
    for r in (0, 8, 16):
        schedules = [Schedule.constant(r)] * images
        expected = float32.logits(pixels, schedules).argmax(dim=-1)
        predicted = bfloat16.logits(pixels, schedules).argmax(dim=-1)
        agreement = (predicted == expected).float().mean()
        assert agreement >= 0.98


def test_the_profile_has_every_default_level(profile: dict[str, float]) -> None:
    """A request with ``min_accuracy`` never gets a level without an accuracy."""
    levels = {str(level) for level in Settings().levels}
    assert levels <= set(profile)


def test_the_files_are_small_enough_to_ship() -> None:
    sizes = [file.stat().st_size for file in BUNDLED.parent.iterdir()]
    assert sum(sizes) < MAX_BYTES
