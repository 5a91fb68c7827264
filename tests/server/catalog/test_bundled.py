"""The bundled model on the 10,000 test images that it never saw: the claims that README makes of
it.
"""

from __future__ import annotations

import pytest

from server.catalog.entries import BUNDLED, read_catalog
from server.catalog.profiles import read_profile
from server.commands.datasets import FASHION_MNIST_DIR, open_dataset
from server.commands.evaluate import batches, class_indices, measure
from server.commands.offline import load_runner, parse_schedule
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule


@pytest.mark.slow
@pytest.mark.skipif(
    not FASHION_MNIST_DIR.is_dir(), reason="needs `apt install dataset-fashion-mnist`"
)
def test_accuracy_is_what_the_profile_says() -> None:
    (spec,) = read_catalog(None, ())
    runner = load_runner(ModelSettings(), spec)
    schedules = [parse_schedule(runner, r) for r in ("0", "13")]
    data = open_dataset(None)
    assert len(data) == 10_000
    rows = measure(runner, schedules, data, class_indices(data, runner.model.labels), batch=50)
    plain, merged = (row.accuracy for row in rows)
    assert plain >= 90
    assert merged >= plain - 1.3
    assert spec.profile is not None
    profile = {row.r: row.accuracy for row in read_profile(spec.profile)}
    assert abs(profile["0"] - plain) <= 0.05
    assert abs(profile["13"] - merged) <= 0.05


@pytest.mark.slow
@pytest.mark.skipif(
    not FASHION_MNIST_DIR.is_dir(), reason="needs `apt install dataset-fashion-mnist`"
)
def test_bfloat16_names_the_same_class_as_float32() -> None:
    (spec,) = read_catalog(None, ())
    runners = [load_runner(ModelSettings(dtype=dtype), spec) for dtype in ("float32", "bfloat16")]
    data = open_dataset(None, 1000)
    pixels, _ = next(batches(runners[0], data, class_indices(data, runners[0].model.labels), 1000))
    for r in (0, 8, 16):
        exact, rounded = (
            runner.logits(pixels, [Schedule.constant(r)] * 1000).argmax(dim=-1)
            for runner in runners
        )
        assert (exact == rounded).float().mean() >= 0.98


def test_every_level_has_an_accuracy() -> None:
    """Without one, a request with ``min_accuracy`` is never given that level."""
    (spec,) = read_catalog(None, ())
    assert spec.profile is not None
    assert {str(level) for level in Settings().levels} <= {
        row.r for row in read_profile(spec.profile)
    }


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.parent.iterdir()) < 12_000_000
