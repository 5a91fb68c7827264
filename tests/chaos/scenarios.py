"""All scenarios, with the size of their long form and of the short form in every test run."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from tests.chaos import (
    api_loss,
    api_memory,
    api_restart,
    connections,
    decode_workers,
    disconnects,
    faults,
    hanging,
    identity,
    killing,
    overload,
    parent,
    poison,
    positions,
    reload,
    schema,
    sigterm,
    soak,
    sounds,
    videos,
)
from tests.chaos.harness import Arena
from tests.chaos.results import Found


@dataclass(frozen=True)
class Scenario:
    """One way of breaking the server.

    Attributes:
        long: its size in `make chaos`.
        short: its size in every test run; 0 where only the long form says anything, or where a test
            of its own checks the same.
        short_of_three: the same with three API processes.
    """

    name: str
    run: Callable[[Arena], Coroutine[Any, Any, Found]]
    long: int
    short: int
    short_of_three: int = 0

    def steps(self, times: int) -> int | None:
        """What a progress bar counts to, if that is known."""
        return None if self.name == "schema" else times


SCENARIOS = (
    Scenario("identity", identity.run, long=20_000, short=500, short_of_three=200),
    Scenario("schema", schema.run, long=300, short=10),
    Scenario("poison", poison.run, long=10_000, short=400),
    Scenario("sounds", sounds.run, long=10_000, short=0),  # in "videos", too
    Scenario("videos", videos.run, long=2_000, short=60),
    Scenario("decode-kill", decode_workers.kill, long=20, short=0),
    Scenario("decode-hang", decode_workers.stop, long=5, short=0),
    Scenario("positions", positions.run, long=10, short=0),
    Scenario("faults", faults.run, long=5_000, short=300),
    Scenario("disconnects", disconnects.run, long=1_000, short=200),
    Scenario("connections", connections.run, long=10_000, short=1_024),
    Scenario("sigterm", sigterm.run, long=50, short=1, short_of_three=1),
    Scenario("kill", killing.kill, long=20, short=1),
    Scenario("stop", killing.stop, long=20, short=0),
    Scenario("hang", hanging.run, long=5, short=1),
    # Tests of the server, in tests/server/test_api_processes.py, check the same in little.
    Scenario("api-kill", api_loss.kill, long=20, short=0, short_of_three=1),
    Scenario("api-stop", api_loss.stop, long=20, short=0),
    Scenario("api-memory", api_memory.run, long=20, short=0),
    Scenario("api-restart", api_restart.run, long=20, short=0),
    Scenario("reload", reload.run, long=20, short=2),
    Scenario("parent-kill", parent.run, long=20, short=0),
    Scenario("overload", overload.run, long=60, short=0),
    Scenario("soak", soak.run, long=600, short=10),
)
