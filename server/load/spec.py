"""What load to make."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from server.errors import ConfigError
from server.load.arrivals import Arrivals
from server.load.pictures import Picture

Endpoint = Literal["classify", "embed"]


@dataclass(frozen=True)
class LoadSpec:
    """One run: an open loop with a ``rate``, a closed one with ``connections``; for a ``duration`` or ``requests``.

    Attributes:
        url: the server, ``http://host:port``.
        pictures: drawn from uniformly, each request one.
        rate: requests a second that are sent by plan, whether earlier ones are answered or not.
        arrivals: how the gaps of an open loop are distributed.
        connections: clients of a closed loop; each sends its next request when it has its answer.
        duration: seconds in which requests are sent; answers are awaited beyond.
        requests: how many are sent.
        warmup: seconds of the same load before, which do not count.
        r: schedules as text, drawn from uniformly; an empty one leaves the choice to the server.
        deadline_ms: sent along; an answer counts as good only if it came within.
        key: API key.
        timeout: seconds after which an answer is no longer waited for.
        max_connections: of an open loop; requests beyond wait, and their wait counts.
        seed: the same seed gives the same requests at the same times.
        probe: ask once for each ``r`` first, and give up where the request itself is wrong (4xx).

    Raises:
        ConfigError: the values cannot work together.
    """

    url: str
    pictures: tuple[Picture, ...] = field(repr=False)
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    connections: int | None = None
    duration: float | None = None
    requests: int | None = None
    warmup: float = 0.0
    r: tuple[str, ...] = ("",)
    endpoint: Endpoint = "classify"
    model: str = ""
    deadline_ms: float | None = None
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    max_connections: int = 512
    seed: int = 0
    probe: bool = True

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"{self.url!r} is no address of a server; it looks like http://127.0.0.1:8000"
            )
        if (self.rate is None) == (self.connections is None):
            raise ConfigError(
                "give either a rate (open loop) or a number of connections (closed loop)"
            )
        if (self.duration is None) == (self.requests is None):
            raise ConfigError("give either a duration or a number of requests")
        for name in (
            "rate",
            "connections",
            "duration",
            "requests",
            "deadline_ms",
            "timeout",
            "max_connections",
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {value:g}")
        if self.warmup < 0:
            raise ConfigError(f"warmup must not be negative, got {self.warmup:g}")
        if not self.pictures or not self.r:
            raise ConfigError("there must be at least one picture and one r")
