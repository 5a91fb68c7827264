"""Health checks on made-up heartbeats: no clock, no process."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.ipc.board import Heartbeat
from server.supervision.health import (
    WATCH_SECONDS,
    HealthPolicy,
    HealthState,
    backoff,
    is_hung,
    is_without_heartbeat,
    observe,
)

POLICY = HealthPolicy()
STEPS = round(3 / WATCH_SECONDS)


def watch(heartbeats: list[Heartbeat], elapsed: float = WATCH_SECONDS) -> HealthState:
    state = HealthState()
    for heartbeat in heartbeats:
        state = observe(state, heartbeat, elapsed)
    return state


def test_an_engine_with_heartbeats_is_healthy_however_long_it_is_idle() -> None:
    state = watch([Heartbeat(beat=1 + index // 2 * 0.5) for index in range(1000)])
    assert not is_without_heartbeat(state, POLICY)
    assert not is_hung(state, POLICY)


def test_an_engine_counts_as_lost_after_several_heartbeats_within_three_seconds() -> None:
    beats = [Heartbeat(beat=index) for index in range(1, 10)]
    without_heartbeat = [
        is_without_heartbeat(watch(beats + [beats[-1]] * more), POLICY) for more in range(STEPS)
    ]
    assert without_heartbeat[-1]
    assert not any(without_heartbeat[: round(1.5 / WATCH_SECONDS)])


def test_an_engine_without_any_heartbeat_counts_as_lost() -> None:
    assert is_without_heartbeat(watch([Heartbeat()] * STEPS), POLICY)


@given(st.floats(60, 1e6))
def test_a_pause_of_the_whole_machine_does_not_count_against_the_engine(pause: float) -> None:
    running = Heartbeat(beat=100.0, batch_started=99.0, predicted_seconds=0.1)
    state = observe(watch([running] * 2), running, elapsed=pause)
    assert not is_without_heartbeat(state, POLICY)
    assert not is_hung(state, POLICY)


@pytest.mark.parametrize(("predicted", "seconds"), [(0.0, 10), (0.5, 10), (1.0, 10), (3.0, 30)])
def test_a_batch_is_hung_after_ten_times_its_prediction_and_at_least_ten_seconds(
    predicted: float, seconds: int
) -> None:
    def after(duration: float) -> bool:
        count = round(duration / WATCH_SECONDS)
        heartbeats = [
            Heartbeat(beat=index, batch_started=7.0, predicted_seconds=predicted)
            for index in range(count + 1)
        ]
        return is_hung(watch(heartbeats), POLICY)

    assert not after(seconds)
    assert after(seconds + 2 * WATCH_SECONDS)


def test_many_short_batches_are_not_a_hung_batch() -> None:
    assert not is_hung(
        watch([Heartbeat(beat=index, batch_started=1 + index // 4) for index in range(4000)]),
        POLICY,
    )


def test_an_idle_engine_is_not_hung() -> None:
    heartbeats = [Heartbeat(beat=index, batch_started=0.0) for index in range(4000)]
    assert not is_hung(watch(heartbeats), replace(POLICY, batch_timeout=1.0))


def test_the_first_restart_is_immediate_and_later_ones_back_off() -> None:
    waits = [backoff(failures) for failures in range(12)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[1] >= 1
    assert waits[-1] == 30
