"""Health policy: when a process counts as lost or hung, and the back-off between restarts.

Pure functions, without a clock and without processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.ipc.board import Heartbeat

WATCH_SECONDS = 0.25  # between two readings of a heartbeat
_LONGEST_STEP = 2 * WATCH_SECONDS
_LONGEST_BACKOFF = 30.0  # seconds


@dataclass(frozen=True)
class HealthPolicy:
    """Timeouts and limits of one child process, in seconds where nothing else is said.

    Attributes:
        start_timeout: time to be ready; an engine loads its models and warms up in it.
        heartbeat_timeout: time without a heartbeat after which the process counts as lost. It spans
            several heartbeats, and is far shorter than the timeouts of clients.
        batch_timeout: time that every batch of an engine may take. Most batches take less than a
            second, and one that other work on the machine slows down must not cost a restart.
        batch_timeout_factor: a batch may take this many times its prediction, if that is longer, as
            with large models on a CPU. It is far above the largest margin of a prediction,
            a factor of 2.
        failed_starts: number of consecutive failed starts after which no other is tried.
    """

    start_timeout: float = 600.0
    heartbeat_timeout: float = 2.0
    batch_timeout: float = 10.0
    batch_timeout_factor: float = 10.0
    failed_starts: int = 3


@dataclass(frozen=True)
class HealthState:
    """The health of a process: its last heartbeat, and how long nothing has changed in it.

    Only time in which the supervisor itself runs is counted. While the machine or both processes
    are stopped (a suspended laptop, a paused container, Ctrl-Z), the process is not to blame.

    Attributes:
        heartbeat: the last reading.
        without_heartbeat_seconds: time since the last new heartbeat.
        batch_seconds: time since the current batch was first seen; 0 if no batch runs.
    """

    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    without_heartbeat_seconds: float = 0.0
    batch_seconds: float = 0.0


def observe(before: HealthState, heartbeat: Heartbeat, elapsed: float) -> HealthState:
    """Return the state after another reading, ``elapsed`` seconds after the previous one."""
    step = min(elapsed, _LONGEST_STEP)
    without_heartbeat_seconds = 0.0
    if heartbeat.beat == before.heartbeat.beat:
        without_heartbeat_seconds = before.without_heartbeat_seconds + step
    batch_seconds = 0.0
    if heartbeat.batch_started and heartbeat.batch_started == before.heartbeat.batch_started:
        batch_seconds = before.batch_seconds + step
    return HealthState(heartbeat, without_heartbeat_seconds, batch_seconds)


def is_without_heartbeat(state: HealthState, policy: HealthPolicy) -> bool:
    """Return whether the process counts as lost: killed, stopped, or stuck as a whole."""
    return state.without_heartbeat_seconds > policy.heartbeat_timeout


def is_hung(state: HealthState, policy: HealthPolicy) -> bool:
    """Return whether the current batch takes so long that it counts as hung."""
    predicted_seconds = state.heartbeat.predicted_seconds
    longest = max(policy.batch_timeout, policy.batch_timeout_factor * predicted_seconds)
    return state.batch_seconds > longest


def backoff(failures: int) -> float:
    """Return the seconds to wait before the next start: 0, then 1, 2, 4 ... up to 30.

    Args:
        failures: number of consecutive failed starts; 0 after a process that was ready.
    """
    if not failures:
        return 0.0
    return min(2.0 ** (failures - 1), _LONGEST_BACKOFF)
