"""The queueing delay, on made-up cost models."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.latency.cost import CostFeatures, CostModel, ImageCost, RecordedGraphs
from server.latency.queueing import (
    WorkEstimate,
    completion_seconds,
    queue_seconds,
    whole_retry_seconds,
)

ESTIMATES = {
    "small": CostModel(CostFeatures(host=0.5, groups=0.1, tokens=1.0), contention=2.0, margin=0.5),
    "large": CostModel(CostFeatures(host=1.0, linear=3.0)),
}
SMALL = WorkEstimate("small", ImageCost(2.0, 1.0, 1.0), 0.0)
LARGE = WorkEstimate("large", ImageCost(1.0, 1.0, 1.0), 0.0)


def test_draining_a_queue_takes_the_time_of_its_images_and_of_its_batches() -> None:
    assert queue_seconds([], ESTIMATES, 4) == 0
    assert queue_seconds([SMALL], ESTIMATES, 4) == pytest.approx(2 * (0.6 + 2.0))
    assert queue_seconds([SMALL] * 5, ESTIMATES, 4) == pytest.approx(2 * (2 * 0.6 + 5 * 2.0))
    both = queue_seconds([SMALL, LARGE, LARGE], ESTIMATES, 4)
    assert both == pytest.approx(2 * 2.6 + 1.0 + 2 * 3.0)


def test_an_answer_waits_for_the_work_ahead_with_a_margin() -> None:
    whole = queue_seconds([LARGE, SMALL], ESTIMATES, 4)
    assert completion_seconds(SMALL, [LARGE], 0.0, ESTIMATES, 4) == pytest.approx(1.5 * whole)
    assert completion_seconds(SMALL, [LARGE], 1.0, ESTIMATES, 4) == pytest.approx(1.5 * (whole - 1))
    assert completion_seconds(SMALL, [LARGE], 100.0, ESTIMATES, 4) == 0


def test_the_margin_falls_with_the_number_of_batches() -> None:
    whole = queue_seconds([SMALL] * 16, ESTIMATES, 4)
    assert completion_seconds(SMALL, [SMALL] * 15, 0.0, ESTIMATES, 4) == pytest.approx(1.25 * whole)


def test_with_nothing_ahead_an_answer_takes_the_time_on_a_quiet_machine() -> None:
    assert completion_seconds(SMALL, [], 0.0, ESTIMATES, 4) == pytest.approx(0.6 + 2.0)


RECORDED = ImageCost(1.0, 1.0, 1.0)
OTHER = ImageCost(2.0, 1.0, 1.0, 2.0, 1)
GRAPHS = {
    "m": CostModel(
        CostFeatures(host=10.0, host_merging_blocks=1.0, device=1.0, tokens=2.0, mixed=0.5),
        margin=0.0,
        recorded=RecordedGraphs(frozenset({RECORDED}), (1, 4)),
    )
}


def test_a_batch_that_a_graph_runs_takes_the_time_of_its_bucket() -> None:
    same = WorkEstimate("m", RECORDED, 0.0)
    assert completion_seconds(same, [], 0.0, GRAPHS, 4) == pytest.approx(3)
    assert queue_seconds([same] * 2, GRAPHS, 4) == pytest.approx(1 + 4 * 2)  # as long as four
    assert queue_seconds([same] * 9, GRAPHS, 4) == pytest.approx(2 * 9 + 3)


def test_a_graph_runs_the_first_passes_of_images_that_may_run_again() -> None:
    """Each adds half of the 2 s of an image to the batch of the graph, which is padded to four."""
    again = WorkEstimate("m", RECORDED, 0.0, RECORDED.of_share(0.5))
    assert completion_seconds(again, [], 0.0, GRAPHS, 4) == pytest.approx(3 + 1)
    assert queue_seconds([again] * 2, GRAPHS, 4) == pytest.approx(9 + 2)
    once = WorkEstimate("m", RECORDED, 0.0)
    assert queue_seconds([again, once], GRAPHS, 4) == pytest.approx(9 + 1)


def test_an_image_without_a_graph_makes_its_batch_a_mixed_one() -> None:
    same = WorkEstimate("m", RECORDED, 0.0)
    other = WorkEstimate("m", OTHER, 0.0)
    # Two batches of a graph, and a mixed one in which the other image takes 5 s and the host 11 s.
    seconds = queue_seconds([*[same] * 9, other], GRAPHS, 4)
    assert seconds == pytest.approx(2 * 9 + 11)
    later = WorkEstimate("m", RECORDED, 1.0)
    assert queue_seconds([later, *[same] * 7, other], GRAPHS, 4) == pytest.approx(
        9 + (1 + 3 * 2.5 + 5) + 3
    )
    assert queue_seconds([other, same], GRAPHS, 4) == pytest.approx(11)
    assert queue_seconds([other] * 3, GRAPHS, 4) == pytest.approx(1 + 3 * 4)


@given(st.floats(0, 1e9))
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(seconds: float) -> None:
    assert whole_retry_seconds(seconds) in range(1, 61)
    if 1 <= seconds <= 60:
        assert whole_retry_seconds(seconds) == math.ceil(seconds)


def test_the_current_batch_comes_first_whatever_is_due_earlier() -> None:
    alone = completion_seconds(SMALL, [], 0.0, ESTIMATES, 4)
    assert completion_seconds(SMALL, [], 0.5, ESTIMATES, 4, remaining=3.0) == alone + 3
    assert completion_seconds(SMALL, [LARGE], 100.0, ESTIMATES, 4, remaining=3.0) == 3
