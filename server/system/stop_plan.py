"""The times of a stop: how long each of its phases takes at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StopPlan:
    """The phases of a stop in their order, each with the seconds that it takes at most.

    Whoever stops the process waits for `total` before killing it: deploy/ray_serve.py uses it, and
    tests/deploy compares the grace periods of the containers with it.

    Attributes:
        drain: every admitted request gets its response. Once it is over, requests are cut off.
        accept: connections that wait in the kernel are accepted and refused, before their socket
            closes. uvloop accepts one connection an iteration, so a busy loop needs time for all.
        orders: orders of the parent process reach the API processes, and their reports reach it;
            decode workers end.
        engines: engines end by themselves; they have no jobs any more. The others are killed.
        abort: requests that failed with their engines write their responses, and connections whose
            clients do not read are aborted.
        spans: spans that are left are exported.
        kill: killed engines have ended. It takes milliseconds, unless the kernel still releases a
            GPU.
        arrival: part of `send`, in which a request that is being sent may still arrive.
        linger: part of `send`, in which what clients still send is read and discarded.
        forced_send: in place of `send` after requests were cut off.
    """

    drain: float = 30.0
    accept: float = 2.0
    orders: float = 1.0
    engines: float = 5.0
    abort: float = 1.0
    spans: float = 1.5
    kill: float = 5.0
    arrival: float = 0.5
    linger: float = 2.0
    forced_send: float = 1.0

    @property
    def bodies(self) -> float:
        """Part of `drain`, in which bodies may arrive; the rest is for their responses."""
        return self.drain / 2

    @property
    def send(self) -> float:
        """Clients read their responses, between `accept` and `engines`."""
        return self.drain

    @property
    def api_end(self) -> float:
        """An API process without open connections ends."""
        return self.abort + self.spans + self.orders

    @property
    def total(self) -> float:
        """All phases together."""
        after_send = self.api_end + self.orders + self.engines + self.kill
        return self.drain + self.accept + self.send + after_send
