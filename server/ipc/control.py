"""The messages between the parent process and its children: plain data.

The parent starts engines and API processes, and tells each about the others. A message that hands
over one end of a socket pair travels with its descriptor (`server.ipc.channel`).

Parent to engine: `EngineConfig`; `SlotsReady` as the answer to `Ready`; then `Attach` and `Detach`
for every API process; at the end `Stop`. Engine to parent: `Ready` or `StartFailed`; then
`Detached`.

Parent to API process: `ApiConfig`; `Serving`; `EngineUp`, `EngineEnded` and `EngineGivenUp`
whenever they happen; `Serve`; `ReloadStatus`, `ReloadEnded`; at the end `Drain` and `Close`, or
`Retire`. API process to parent: `Started`; `EngineAttached` or `EngineRefused` for each `EngineUp`;
`EngineUnusable`; `Released`; `ReloadWanted`; `RetireWanted`; `Drained`; or `ApiFailed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.ipc.messages import ModelInfo
from server.ipc.reload import ReloadReport
from server.latency.cost import CostModel


@dataclass(frozen=True)
class Attach:
    """An API process sends jobs from now on. The message has a descriptor: of their channel.

    Attributes:
        worker: index of the API process.
    """

    worker: int


@dataclass(frozen=True)
class Detach:
    """The API process ``worker`` has ended: drop its jobs, and close its channel."""

    worker: int


@dataclass(frozen=True)
class Detached:
    """The engine has no job of the API process ``worker`` any more, and reads none of its slots."""

    worker: int


@dataclass(frozen=True)
class EngineUp:
    """An engine accepts jobs. The message has a descriptor: of the channel to it.

    Attributes:
        engine: its index.
        pid: of its process.
        slot_bytes: bytes of a slot, the same for all engines of a generation.
        cost_models: the cost model of each model, by name.
        generation: to which it belongs; it gets no job of another one.
        slot_offset: where the slots of its generation begin in their memory.
    """

    engine: int
    pid: int
    models: tuple[ModelInfo, ...]
    slot_bytes: int
    cost_models: dict[str, CostModel]
    generation: int = 0
    slot_offset: int = 0


@dataclass(frozen=True)
class EngineEnded:
    """The process of ``engine`` has ended: it reads no slot any more. Another one may follow."""

    engine: int


@dataclass(frozen=True)
class EngineGivenUp:
    """The process of ``engine`` has ended, and no other follows."""

    engine: int


@dataclass(frozen=True)
class Serving:
    """Requests that arrive from now on are for the models of this generation.

    The process can use all its engines already, but at the start of the server.

    Attributes:
        engines: the indices of its engines.
        aliases: by the further name, the name of its model.
    """

    generation: int
    engines: tuple[int, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReloadEnded:
    """The answer to the `ReloadWanted` of that ticket."""

    ticket: int
    report: ReloadReport


@dataclass(frozen=True)
class Serve:
    """Accept connections."""


@dataclass(frozen=True)
class Drain:
    """The server stops: refuse new requests, and report when those in flight have responses."""


@dataclass(frozen=True)
class Close:
    """Accept what waits in the kernel, close all connections, and end.

    Attributes:
        forced: do not wait for clients that still read.
    """

    forced: bool = False


@dataclass(frozen=True)
class Retire:
    """Accept no more connections, answer what arrives on the open ones, close them, and end."""


@dataclass(frozen=True)
class Started:
    """The API process can accept connections."""


@dataclass(frozen=True)
class EngineAttached:
    """The API process sends jobs to ``engine``."""

    engine: int


@dataclass(frozen=True)
class EngineUnusable:
    """An engine has closed its channel, or has sent what is no answer: if it lives, it must end.

    Attributes:
        pid: of its process.
    """

    engine: int
    pid: int


@dataclass(frozen=True)
class EngineRefused:
    """The API process cannot serve the models of an engine of a generation that does not serve yet.

    Attributes:
        reason: one sentence for the operator.
    """

    engine: int
    reason: str


@dataclass(frozen=True)
class Released:
    """No request of this generation is in flight any more, and none follows."""

    generation: int


@dataclass(frozen=True)
class ReloadWanted:
    """Read the catalog again, and say what came of it.

    Attributes:
        ticket: of the API process, for the answer.
    """

    ticket: int


@dataclass(frozen=True)
class RetireWanted:
    """The API process has got a SIGTERM: it should retire, unless the whole server stops."""


@dataclass(frozen=True)
class Drained:
    """No request is in flight, or the time for them is over.

    Attributes:
        all_answered: whether every admitted request has its response.
    """

    all_answered: bool


@dataclass(frozen=True)
class ApiFailed:
    """The API process cannot do its work, nor could another one in its place.

    Attributes:
        reason: one sentence for the operator.
    """

    reason: str
