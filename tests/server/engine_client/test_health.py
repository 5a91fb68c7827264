"""Decisions of life and death, on made-up times: no clock, no process."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine_client.health import (
    WATCH_SECONDS,
    HealthPolicy,
    Vitals,
    backoff,
    is_hung,
    is_silent,
    observe,
)
from server.ipc.heartbeat import Heartbeat

PATIENCE = HealthPolicy()
STEPS = round(3 / WATCH_SECONDS)


def watch(pulses: list[Heartbeat], elapsed: float = WATCH_SECONDS) -> Vitals:
    vitals = Vitals()
    for pulse in pulses:
        vitals = observe(vitals, pulse, elapsed)
    return vitals


def test_an_engine_that_beats_is_well_however_long_it_idles() -> None:
    vitals = watch([Heartbeat(beat=1 + index // 2 * 0.5) for index in range(1000)])
    assert not is_silent(vitals, PATIENCE)
    assert not is_hung(vitals, PATIENCE)


def test_one_that_stops_is_noticed_within_three_seconds_and_not_before_several_beats() -> None:
    beats = [Heartbeat(beat=index) for index in range(1, 10)]
    silent = [is_silent(watch(beats + [beats[-1]] * more), PATIENCE) for more in range(STEPS)]
    assert silent[-1]
    assert not any(silent[: round(1.5 / WATCH_SECONDS)])


def test_one_that_never_beats_is_noticed_too() -> None:
    assert is_silent(watch([Heartbeat()] * STEPS), PATIENCE)


@given(st.floats(60, 1e6))
def test_a_pause_of_the_whole_machine_is_nobodys_fault(pause: float) -> None:
    running = Heartbeat(beat=100.0, began=99.0, predicted=0.1)
    vitals = observe(watch([running] * 2), running, elapsed=pause)
    assert not is_silent(vitals, PATIENCE)
    assert not is_hung(vitals, PATIENCE)


@pytest.mark.parametrize(("predicted", "seconds"), [(0.0, 10), (0.5, 10), (1.0, 10), (3.0, 30)])
def test_a_batch_hangs_after_ten_times_its_prediction_and_ten_seconds_at_least(
    predicted: float, seconds: int
) -> None:
    def after(duration: float) -> bool:
        count = round(duration / WATCH_SECONDS)
        pulses = [
            Heartbeat(beat=index, began=7.0, predicted=predicted) for index in range(count + 1)
        ]
        return is_hung(watch(pulses), PATIENCE)

    assert not after(seconds)
    assert after(seconds + 2 * WATCH_SECONDS)


def test_batch_after_batch_is_no_hang() -> None:
    assert not is_hung(
        watch([Heartbeat(beat=index, began=1 + index // 4) for index in range(4000)]), PATIENCE
    )


def test_between_batches_nothing_hangs() -> None:
    pulses = [Heartbeat(beat=index, began=0.0) for index in range(4000)]
    assert not is_hung(watch(pulses), replace(PATIENCE, hung=1.0))


def test_the_first_restart_is_immediate_and_later_ones_back_off() -> None:
    waits = [backoff(failures) for failures in range(12)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert waits[1] >= 1
    assert waits[-1] == 30
