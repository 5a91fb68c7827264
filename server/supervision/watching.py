"""Watching the heartbeat of a process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from server.ipc.board import Heartbeat
from server.supervision.health import (
    WATCH_SECONDS,
    HealthPolicy,
    HealthState,
    is_hung,
    is_without_heartbeat,
    observe,
)

log = logging.getLogger("tome.server")


async def wait_until_unhealthy(
    name: str, read_heartbeat: Callable[[], Heartbeat], policy: HealthPolicy
) -> None:
    """Return when a process has no heartbeat or is hung, and log which.

    Args:
        name: of the process, for the log.
    """
    state = HealthState()
    last = time.monotonic()
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        now = time.monotonic()
        state = observe(state, read_heartbeat(), now - last)
        last = now
        if is_without_heartbeat(state, policy):
            log.error("%s: no heartbeat for %.1f s", name, state.without_heartbeat_seconds)
            return
        if is_hung(state, policy):
            log.error(
                "%s: hung: a batch has run for %.1f s, predicted were %.3f s",
                name,
                state.batch_seconds,
                state.heartbeat.predicted_seconds,
            )
            return
