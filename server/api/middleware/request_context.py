"""What is known of one request, from its header to its line in the access log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.api.middleware.trace_context import TraceContext

if TYPE_CHECKING:
    from server.api.middleware.spans import RequestSpans
    from server.engine_client.link import Result
    from tome_core.schedule import Schedule


@dataclass
class RequestContext:
    """The state of one request, updated while it is processed; ``request.state.context``.

    Attributes:
        id: from ``X-Request-ID``, or generated.
        path: of the URL, without the prefix that a proxy adds.
        started: when the request's headers arrived, ``time.monotonic()`` seconds.
        headers: of the request, by their lower-case names; the first of each name.
        model: the requested model; empty until the parameters are parsed.
        r: the requested schedule; after inference the one that was used.
        route: the path of the route, if middleware answers instead of the route.
        stage: the current stage: ``body``, ``decode``, ``queue`` or ``picture``.
        stages: milliseconds of each finished stage; of several images the longest.
        endings: of a request with ``confidence``: how many images ended in which way.
        trace: this request as an operation of the client's trace; None outside a trace.
        spans: records what this request does, if spans are recorded.
    """

    id: str
    path: str
    started: float
    headers: Mapping[bytes, bytes] = field(default_factory=dict)
    model: str = ""
    r: str = ""
    route: str = ""
    stage: str = "body"
    stages: dict[str, float] = field(default_factory=dict)
    endings: dict[str, int] = field(default_factory=dict)
    trace: TraceContext | None = None
    spans: RequestSpans | None = None

    def record_run(self, submitted: float, result: Result) -> None:
        """Record the spans of an image in the engine: its wait since ``submitted``, and its run."""
        if self.spans is None:
            return
        batch = result.batch
        queue_seconds = result.outcome.queue_seconds
        self.spans.record("queue", submitted, queue_seconds, model=self.model)
        self.spans.record(
            "forward",
            submitted + queue_seconds,
            batch.forward_seconds,
            model=self.model,
            r=str(result.outcome.schedule),
            batch_size=batch.images,
        )

    def record_missing_pass(self, started: float, schedule: Schedule, ended: str) -> None:
        """Record the span of a second pass that has no result.

        Args:
            started: when it was asked for, ``time.monotonic()`` seconds.
            schedule: of the pass.
            ended: why it has none, as in ``endings``.
        """
        if self.spans is None:
            return
        seconds = time.monotonic() - started
        self.spans.record(
            "second_pass", started, seconds, model=self.model, r=str(schedule), result=ended
        )

    def count_ending(self, ended: str) -> None:
        """Count an image of a request with ``confidence`` in ``endings``."""
        self.endings[ended] = self.endings.get(ended, 0) + 1
