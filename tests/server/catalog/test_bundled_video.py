"""The claims about the bundled model of video, through the server's own front end."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.catalog.entries import BUNDLED, BUNDLED_VIDEO, ModelSpec, read_catalog
from server.commands.offline import load_runner, parse_schedule
from server.engine.execution.runner import Runner
from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.settings import ModelSettings

pytest.importorskip("av")

from server.video.front_end import prepare

EXAMPLE = Path(__file__).parents[3] / "examples" / "clockwise.mp4"
MAX_BYTES = 6_000_000


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    (motion,) = read_catalog(None, ("motion",))
    return motion


@pytest.fixture(scope="module")
def runner(spec: ModelSpec) -> Runner:
    return load_runner(ModelSettings(threads=1, dtype="float32"), spec)


def test_it_is_served_by_its_name_and_not_by_default(spec: ModelSpec) -> None:
    assert [spec] == list(read_catalog(BUNDLED_VIDEO, ()))
    assert spec not in read_catalog(None, ())
    both = read_catalog(None, ("fashion-mnist", "motion"))
    assert both == (*read_catalog(BUNDLED, ()), spec)


@pytest.mark.parametrize("r", ["0", "40", "40:-1"])
def test_the_garment_of_the_example_turns_clockwise(runner: Runner, r: str) -> None:
    transform = runner.model.transform
    assert isinstance(transform, VideoTransform)
    inputs = prepare(EXAMPLE.read_bytes(), transform, VideoLimits()).inputs
    assert inputs.shape == (1, 3, 16 * 64, 64)
    scores = runner.logits(inputs, [parse_schedule(runner, r)]).softmax(dim=-1)[0]
    assert runner.model.labels[int(scores.argmax())] == "rotate-clockwise"
    assert scores.max() > 0.7


def test_the_labels_are_the_motions(runner: Runner) -> None:
    from training.motion.motions import NAMES

    assert tuple(runner.model.labels) == NAMES


def test_the_files_are_small_enough_to_ship(spec: ModelSpec) -> None:
    assert spec.checkpoint is not None
    assert spec.checkpoint.stat().st_size < MAX_BYTES
    assert EXAMPLE.stat().st_size < 100_000
