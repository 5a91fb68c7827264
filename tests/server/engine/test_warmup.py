import pytest

from server.engine.runner import Runner
from server.engine.warmup import Baseline, level_batch, measure_baseline, measure_levels


@pytest.mark.parametrize(("images", "expected"), [(1, 1.0), (2, 1.5), (3, 2.5), (4, 3.5), (6, 4.5), (8, 5.5)])
def test_the_baseline_is_a_line_between_measured_sizes(images: int, expected: float) -> None:
    assert Baseline((1, 2, 4, 8), (1.0, 1.5, 3.5, 5.5))(images) == pytest.approx(expected)


def test_every_batch_size_up_to_the_largest_is_covered(runner: Runner) -> None:
    assert measure_baseline(runner, 6).sizes == (1, 2, 4, 6)


def test_levels_say_what_is_left(runner: Runner) -> None:
    levels = measure_levels(runner, (0, 4, 8, 99), batch=2)
    # 99 is more than the model has
    assert [(level.r, level.tokens_out) for level in levels] == [("0", 17), ("4", 9), ("8", 5)]
    assert levels[0].relative_flops == levels[0].speedup == 1
    assert 1 > levels[1].relative_flops > levels[2].relative_flops > 0


def test_a_slow_model_is_timed_with_fewer_images() -> None:
    assert level_batch(Baseline((1, 8), (0.001, 0.008)), levels=5, max_batch=32) == 8
    assert level_batch(Baseline((1, 8), (0.001, 0.008)), levels=5, max_batch=2) == 2
    assert level_batch(Baseline((1, 8), (0.2, 1.6)), levels=5, max_batch=32) == 2
    assert level_batch(Baseline((1,), (3.0,)), levels=5, max_batch=32) == 1


def test_beyond_the_sizes_measured_time_is_in_proportion() -> None:
    assert Baseline((1, 2), (1.0, 1.5))(8) == 6.0
