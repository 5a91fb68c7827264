"""The specification of a load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from server.errors import ConfigError
from server.system.unix_http import socket_path
from tome_load.arrivals import Arrivals
from tome_load.uploads import Upload

Endpoint = Literal["classify", "embed"]

_POSITIVE_FIELDS = (
    "rate",
    "connections",
    "duration",
    "requests",
    "deadline_ms",
    "timeout",
    "max_connections",
)


@dataclass(frozen=True)
class LoadSpec:
    """One run: an open loop (``rate``) or a closed one (``connections``), of limited length.

    Attributes:
        url: the server, ``http://host:port``.
        uploads: each request carries one, drawn uniformly.
        rate: requests a second of an open loop, sent as planned, before earlier ones are answered.
        arrivals: distribution of the gaps in an open loop.
        connections: clients of a closed loop; each sends its next request after an answer.
        duration: seconds of sending; answers may arrive later.
        requests: number of requests to send.
        warmup: seconds of the same load beforehand, which do not count.
        r: schedules as text, drawn uniformly; with an empty one the server chooses.
        confidence: below which images run again, as text; empty for one pass.
        deadline_ms: deadline in each request; only answers within it are good.
        key: API key.
        timeout: seconds to wait for an answer.
        max_connections: limit of an open loop; further requests wait, and their wait counts.
        seed: the same seed gives the same requests at the same times.
        probe: first send one request for each ``r``, and stop if the server refuses it (4xx).

    Raises:
        ConfigError: a value is not allowed, or values contradict each other.
    """

    url: str
    uploads: tuple[Upload, ...] = field(repr=False)
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    connections: int | None = None
    duration: float | None = None
    requests: int | None = None
    warmup: float = 0.0
    r: tuple[str, ...] = ("",)
    endpoint: Endpoint = "classify"
    model: str = ""
    confidence: str = ""
    deadline_ms: float | None = None
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    max_connections: int = 512
    seed: int = 0
    probe: bool = True

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
        if not is_http and not socket_path(self.url):
            raise ConfigError(
                f"{self.url!r} is not the URL of a server, such as http://127.0.0.1:8000"
            )
        if (self.rate is None) == (self.connections is None):
            raise ConfigError(
                "give either a rate (open loop) or a number of connections (closed loop)"
            )
        if (self.duration is None) == (self.requests is None):
            raise ConfigError("give either a duration or a number of requests")
        for name in _POSITIVE_FIELDS:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value:g}")
        if self.warmup < 0:
            raise ConfigError(f"warmup must not be negative, got {self.warmup:g}")
        if self.confidence and self.endpoint != "classify":
            raise ConfigError("confidence is for classify, not for embed")
        if not self.uploads or not self.r:
            raise ConfigError("there must be at least one upload and one r")
