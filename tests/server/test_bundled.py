"""The bundled model on the 10,000 test images that it never saw: the claims that README makes of it."""

from __future__ import annotations

import pytest

from server.catalog import BUNDLED, read_catalog
from server.datasets import FASHION_MNIST_DIR, open_dataset
from server.evaluate import class_indices, measure
from server.offline import load_runner, parse_schedule
from server.profiles import read_profile
from server.settings import ModelSettings


@pytest.mark.slow
@pytest.mark.skipif(not FASHION_MNIST_DIR.is_dir(), reason="needs `apt install dataset-fashion-mnist`")
def test_accuracy_is_what_the_profile_says() -> None:
    (spec,) = read_catalog(None, ())
    runner = load_runner(ModelSettings(), spec)
    schedules = [parse_schedule(runner, r) for r in ("0", "13")]
    data = open_dataset(None)
    assert len(data) == 10_000
    rows = measure(runner, schedules, data, class_indices(data, runner.model.labels), batch=50)
    plain, merged = (row.accuracy for row in rows)
    assert plain >= 80
    assert merged >= plain - 3
    assert spec.profile is not None
    profile = {row.r: row.accuracy for row in read_profile(spec.profile)}
    assert abs(profile["0"] - plain) <= 0.05
    assert abs(profile["13"] - merged) <= 0.05


def test_it_is_small_enough_to_ship() -> None:
    assert sum(file.stat().st_size for file in BUNDLED.parent.iterdir()) < 12_000_000
