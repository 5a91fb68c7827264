"""One API process, as the parent process has it: start, engines, orders, end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from server.errors import ApiStartError
from server.ipc.api_config import ApiConfig
from server.ipc.board import Heartbeat
from server.ipc.channel import ChannelClosed
from server.ipc.control import (
    ApiFailed,
    Close,
    Drain,
    Drained,
    EngineAttached,
    EngineEnded,
    EngineGivenUp,
    EngineRefused,
    EngineUnusable,
    EngineUp,
    Released,
    ReloadWanted,
    Retire,
    RetireWanted,
    Serve,
    Started,
)
from server.ipc.packing import BadMessage
from server.supervision.child import Child
from server.supervision.engine_group import EngineNews
from server.supervision.shared import SharedMemory

MODULE = "server.api"


class ApiProcess:
    """One API process, from its start to its end. A restart makes another `ApiProcess`.

    Args:
        shared: the memory that it inherits.
        on_attached: called with the index of each engine that the process can use from then on.
        on_unusable: called with index and process ID of each engine that it cannot use any more.
        on_retire_wanted: called when it has got a SIGTERM.
        on_report: called with what it says of generations of engines, and with its wish for the
            next one.

    Raises:
        OSError: the system has no more files, processes or memory.

    Attributes:
        served: whether it has accepted connections.
        drained: set when it has reported that no request is in flight any more, or has ended.
        all_answered: whether every request that it admitted has its response, once it is drained.
        failure: why no such process can work, if it has said so.
    """

    def __init__(
        self,
        config: ApiConfig,
        shared: SharedMemory,
        on_attached: Callable[[int], None],
        on_unusable: Callable[[int, int], None],
        on_retire_wanted: Callable[[], None],
        on_report: Callable[[Released | EngineRefused | ReloadWanted], None],
    ) -> None:
        self._config = config
        self._row = shared.board.workers[config.worker]
        self._on_attached = on_attached
        self._on_unusable = on_unusable
        self._on_retire_wanted = on_retire_wanted
        self._on_report = on_report
        self._unattached: set[int] = set()  # engines that it knows of and cannot use yet
        self._settled = asyncio.Event()  # all are attached, or it has ended
        self.served = False
        self.drained = asyncio.Event()
        self.all_answered = False
        self.failure: str | None = None
        listeners = (*config.listeners, *config.metrics_listeners)
        self._child = Child(MODULE, shared.descriptors, listeners)
        self._control = self._child.control

    @property
    def heartbeat(self) -> Heartbeat:
        """The time of its last heartbeat."""
        return self._row.heartbeat()

    async def wait_until_started(self, timeout: float) -> None:
        """Send the configuration, and wait until the process could accept connections.

        Raises:
            ApiStartError: it has ended, or takes longer than ``timeout`` seconds.
        """
        self._control.send(self._config)
        try:
            message, _ = await asyncio.wait_for(self._control.receive(), timeout)
        except ChannelClosed:
            code = await self._child.exit_code()
            text = f"the API process ended while starting (exit code {code})"
            raise ApiStartError(text) from None
        except TimeoutError:
            text = f"the API process has not started within {timeout:g} s"
            raise ApiStartError(text) from None
        except BadMessage as error:
            raise ApiStartError(str(error)) from error
        if not isinstance(message, Started):
            raise ApiStartError(f"{type(message).__name__} was received, not Started")

    def tell(self, news: EngineNews, connection: socket.socket | None = None) -> None:
        """Report what has happened to an engine or to the catalog; see `Subscriber`."""
        match news:
            case EngineUp(engine=engine):
                self._unattached.add(engine)
            case EngineEnded(engine=engine) | EngineGivenUp(engine=engine):
                self._unattached.discard(engine)
        if connection is None:
            self._control.send(news)
        else:
            with connection:
                self._control.send(news, connection.fileno())
        self._settled.clear()
        self._settle()

    async def wait_until_attached(self) -> None:
        """Wait until the process can use all engines that it knows of, or has ended."""
        self._settle()
        await self._settled.wait()

    def serve(self) -> None:
        """Let the process accept connections."""
        self._control.send(Serve())
        self.served = True

    def drain(self) -> None:
        """Let the process refuse new requests, and report when the others have responses."""
        self._control.send(Drain())

    def close(self, forced: bool) -> None:
        """Let the process close its connections and end."""
        self._control.send(Close(forced))

    def retire(self) -> None:
        """Let the process answer its requests and end, while others serve on."""
        self._control.send(Retire())

    async def receive(self) -> None:
        """Handle what the process reports, until it ends.

        Raises:
            BadMessage: it sent something else.
        """
        with contextlib.suppress(ChannelClosed):
            while True:
                message, _ = await self._control.receive()
                self._handle(message)

    def _handle(self, message: object) -> None:
        match message:
            case EngineAttached(engine=engine):
                self._unattached.discard(engine)
                self._settle()
                self._on_attached(engine)
            case EngineUnusable(engine=engine, pid=pid):
                self._on_unusable(engine, pid)
            case EngineRefused(engine=engine):
                self._unattached.discard(engine)
                self._settle()
                self._on_report(message)
            case Released() | ReloadWanted():
                self._on_report(message)
            case RetireWanted():
                self._on_retire_wanted()
            case Drained(all_answered=all_answered):
                self.all_answered = all_answered
                self.drained.set()
            case ApiFailed(reason=reason):
                self.failure = reason
                self.kill()
            case _:
                raise BadMessage(f"the parent received {type(message).__name__}")

    async def end(self) -> int:
        """Kill the process if it has not ended, wait for that, and return its exit code."""
        code = await self._child.exit_code()
        if code is None:
            self._child.kill()
            code = await self._child.ended()
        self.all_answered |= code == 0
        self.drained.set()
        self._settled.set()
        self._row.clear()
        self._control.close()
        return code

    def kill(self) -> None:
        """Kill the process."""
        self._child.kill()

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, for at most ``timeout`` seconds."""
        self._child.wait(timeout)

    def _settle(self) -> None:
        if not self._unattached:
            self._settled.set()
