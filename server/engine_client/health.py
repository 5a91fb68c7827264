"""When an engine counts as dead or hung, and how long to wait before the next start. Pure: no clock, no process."""

from __future__ import annotations

from dataclasses import dataclass, field

from server.ipc.heartbeat import Heartbeat

WATCH_SECONDS = 0.25


@dataclass(frozen=True)
class HealthPolicy:
    """How much is borne.

    Attributes:
        start: seconds in which the models must load and warm up.
        silent: seconds without a beat after which a process is taken for dead; several beats, far
            below a client's patience.
        hung: seconds that any batch may take.
        hung_factor: a batch may also take this many times what was predicted, if that is longer.
        starts: so many in a row that never got ready, and the engine is given up.
    """

    start: float = 600.0
    silent: float = 2.0
    hung: float = 10.0
    hung_factor: float = 10.0
    starts: int = 3


@dataclass(frozen=True)
class Vitals:
    """An engine as its supervisor has seen it: the last reading, and for how long its parts have stood still.

    The seconds are those in which the supervisor itself ran. When the whole machine or both
    processes were stopped (a suspended laptop, a paused container, Ctrl-Z), nobody is to blame for
    a beat that did not come.

    Attributes:
        silent: seconds since a new beat was seen.
        busy: seconds since the batch that runs now was first seen.
    """

    pulse: Heartbeat = field(default_factory=Heartbeat)
    silent: float = 0.0
    busy: float = 0.0


def observe(before: Vitals, pulse: Heartbeat, elapsed: float) -> Vitals:
    """The vitals after another reading, ``elapsed`` seconds after the one before."""
    awake = min(elapsed, 2 * WATCH_SECONDS)
    return Vitals(
        pulse,
        silent=before.silent + awake if pulse.beat == before.pulse.beat else 0.0,
        busy=before.busy + awake if pulse.began and pulse.began == before.pulse.began else 0.0,
    )


def is_silent(vitals: Vitals, patience: HealthPolicy) -> bool:
    """Whether the process does not run any more, whatever the kernel says: killed, stopped, or stuck as a whole."""
    return vitals.silent > patience.silent


def is_hung(vitals: Vitals, patience: HealthPolicy) -> bool:
    """Whether the forward pass that runs now will never end, by all that is known of it."""
    return vitals.busy > max(patience.hung, patience.hung_factor * vitals.pulse.predicted)


def backoff(failures: int) -> float:
    """Seconds to wait after ``failures`` starts in a row that never got ready; 0 after an engine that had served."""
    return min(2.0 ** (failures - 1), 30.0) if failures else 0.0
