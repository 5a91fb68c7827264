"""The claims about the bundled model of sound, through the server's own front end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from server.catalog.entries import BUNDLED, BUNDLED_SOUND, ModelSpec, read_catalog
from server.catalog.profiles import profiled_model, read_accuracies, read_profile
from server.commands.offline import load_runner
from server.engine.execution.runner import Runner
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform
from server.settings import ModelSettings
from tome_core.schedule import Schedule

pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from server.audio.front_end import prepare

EXAMPLE = Path(__file__).parents[3] / "examples" / "french.wav"
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    (spoken_language,) = read_catalog(None, ("spoken-language",))
    return spoken_language


@pytest.fixture(scope="module")
def runner(spec: ModelSpec) -> Runner:
    return load_runner(ModelSettings(threads=1, dtype="float32"), spec)


def test_it_is_served_by_its_name(spec: ModelSpec) -> None:
    assert [spec] == list(read_catalog(BUNDLED_SOUND, ()))
    both = read_catalog(None, ("fashion-mnist", "spoken-language"))
    assert both == (*read_catalog(BUNDLED, ()), spec)


def test_the_example_is_french_with_and_without_merging(runner: Runner) -> None:
    transform = runner.model.transform
    assert isinstance(transform, AudioTransform)
    inputs = prepare(EXAMPLE.read_bytes(), transform, AudioLimits()).inputs
    assert len(inputs) == 2
    for level in runner.model.levels:
        scores = runner.logits(inputs, [Schedule.constant(level)] * 2).softmax(dim=-1)
        best = scores.argmax(dim=-1).tolist()
        assert [runner.model.labels[index] for index in best] == ["French", "French"]
        assert scores.max(dim=-1).values.min() > 0.8


def test_the_profile_is_of_the_model_and_has_its_levels(spec: ModelSpec) -> None:
    assert spec.profile is not None
    assert spec.levels is not None
    assert profiled_model(spec.profile) == spec.name
    accuracy = read_accuracies(spec.profile)
    assert {str(level) for level in spec.levels} <= set(accuracy)
    assert accuracy["0"] >= 90


@pytest.mark.parametrize("r", ["20", "22"])
def test_half_of_the_operations_cost_at_most_a_point(spec: ModelSpec, r: str) -> None:
    assert spec.profile is not None
    rows = {row.r: row for row in read_profile(spec.profile)}
    assert rows[r].relative_flops < 0.5
    accuracy = read_accuracies(spec.profile)
    assert accuracy[r] >= accuracy["0"] - 1


def test_the_files_are_small_enough_to_ship(spec: ModelSpec) -> None:
    assert spec.checkpoint is not None
    assert spec.checkpoint.stat().st_size < MAX_BYTES
    assert EXAMPLE.stat().st_size < 200_000


@pytest.mark.slow
def test_the_accuracy_is_that_of_the_profile(spec: ModelSpec, runner: Runner) -> None:
    from training.language.corpus import SOURCES, Role
    from training.language.evaluate import evaluate
    from training.language.prepare import read_clips

    trained = [source for source in SOURCES if source.trained]
    missing = [source.name for source in trained if not source.folder.is_dir()]
    if missing:
        pytest.skip(f"needs Debian's packages of {', '.join(missing)}; see training/README.md")
    assert spec.profile is not None
    profile = read_accuracies(spec.profile)
    clips = read_clips()[Role.HELD_OUT_CLIP]
    result = evaluate(runner, Role.HELD_OUT_CLIP, clips, ["0", "20"])
    accuracy = {r: 100 * hits.double().mean().item() for r, hits in result.hits.items()}
    assert accuracy["0"] >= 90
    assert accuracy["20"] >= accuracy["0"] - 1
    for r, value in accuracy.items():
        assert value == pytest.approx(profile[r], abs=0.5)


def test_weights_are_finite(runner: Runner) -> None:
    assert all(torch.isfinite(value).all() for value in runner.model.network.parameters())
