"""Rounds: the inputs of a request that succeed together, as many at a time as have a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from server.api.pipeline.admission import BufferedInput
from server.engine_client.routing import Lease
from server.errors import RequestError


class Round(NamedTuple):
    """Some inputs of a request, which run at the same time.

    Attributes:
        inputs: at least one.
        leases: the slot of each. The first one belongs to the request.
        start: the index of the first of them among all inputs of the request.
        total: how many inputs the request has.
    """

    inputs: Sequence[BufferedInput]
    leases: Sequence[Lease]
    start: int = 0
    total: int = 1

    def keeps_slot(self, position: int) -> bool:
        """Whether the slot of the input at ``position`` is needed for an input of a later round."""
        return position == 0 and self.start + len(self.inputs) < self.total

    def name_input(self, error: RequestError, position: int) -> None:
        """Say in ``error`` that it is of the input at ``position``; of several, of which one."""
        error.of_input = True
        if self.total > 1:
            error.extensions["index"] = self.start + position
