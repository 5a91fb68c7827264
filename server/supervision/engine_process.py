"""One engine process, as the parent process has it: start, attached API processes, end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from server.errors import EngineStartError
from server.ipc.board import Heartbeat
from server.ipc.channel import ChannelClosed
from server.ipc.control import Attach, Detach, Detached
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import Ready, SlotsReady, StartFailed, Stop
from server.ipc.packing import BadMessage, check_type
from server.ipc.shared_memory import SlotRegion
from server.supervision.child import POLL_SECONDS, Child
from server.supervision.shared import SharedMemory

MODULE = "server.engine"
# Before a restart, the kernel may need seconds to release the memory of a killed process and its
# GPU. A process that is still there after this time hangs in a driver.
_KILL_SECONDS = 30.0


class EngineProcess:
    """One engine process, from its start to its end. A restart makes another `EngineProcess`.

    Args:
        shared: the memory that it inherits.
        module: the Python module that the process runs.

    Raises:
        OSError: the system has no more files, processes or memory.

    Attributes:
        ready: whether API processes can be attached.
        cost_models: the cost model of each model, by name, as they were at the start.
    """

    def __init__(self, config: EngineConfig, shared: SharedMemory, module: str = MODULE) -> None:
        self._config = config
        self._row = shared.board.engines[config.engine]
        self._detaching: dict[int, asyncio.Event] = {}  # by API process
        self.ready = False
        self._child = Child(module, shared.descriptors)
        self._control = self._child.control

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._child.pid

    @property
    def heartbeat(self) -> Heartbeat:
        """The state that the process reports; an empty one if the process has ended."""
        return self._row.heartbeat() if self.alive else Heartbeat()

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._child.alive

    async def wait_until_loaded(self, timeout: float) -> Ready:
        """Send the configuration, and wait until the models are loaded.

        The constructor has started the process. API processes may follow after `accept_jobs`.

        Raises:
            EngineStartError: the engine cannot start, has ended, or takes longer than ``timeout``
                seconds.
        """
        self._control.send(self._config)
        try:
            message, _ = await asyncio.wait_for(self._control.receive(), timeout)
            if not isinstance(message, StartFailed):
                message = check_type(message, Ready)
        except ChannelClosed:
            code = await self.exit_code()
            text = f"the engine process ended while starting (exit code {code})"
            raise EngineStartError(text) from None
        except TimeoutError:
            text = f"the engine was not ready within {timeout:g} s (TOME_START_TIMEOUT)"
            raise EngineStartError(text) from None
        except BadMessage as error:
            raise EngineStartError(str(error)) from error
        if isinstance(message, StartFailed):
            raise EngineStartError(
                message.reason,
                explained=message.safer is None,
                safer=message.safer,
            )
        return message

    def accept_jobs(self, region: SlotRegion) -> None:
        """Tell the engine where its slots are; it takes jobs from now on."""
        self._control.send(SlotsReady(region.slot_bytes, region.offset))
        self.ready = True

    def attach(self, worker: int) -> socket.socket:
        """Give the engine a channel to an API process, and return the other end of it.

        Args:
            worker: index of the API process.

        Raises:
            OSError: the system has no more files.
        """
        api_end, engine_end = socket.socketpair()
        with engine_end:
            self._control.send(Attach(worker), engine_end.fileno())
        return api_end

    async def detach(self, worker: int) -> None:
        """Wait until the engine, or its end, has dropped the jobs of an API process that ended."""
        if not self.ready:
            return
        detached = self._detaching.setdefault(worker, asyncio.Event())
        self._control.send(Detach(worker))
        await detached.wait()

    async def receive(self) -> None:
        """Handle what the engine reports, until it closes its end of the channel.

        Raises:
            BadMessage: the engine sent something else.
        """
        with contextlib.suppress(ChannelClosed):
            while True:
                message, _ = await self._control.receive()
                worker = check_type(message, Detached).worker
                detached = self._detaching.pop(worker, None)
                if detached is not None:
                    detached.set()

    async def close(self) -> None:
        """Kill the process, and wait until it has ended.

        Raises:
            EngineStartError: the kernel cannot end the process, so that neither the slots nor its
                device can be used again.
        """
        self.ready = False
        limit = time.monotonic() + _KILL_SECONDS
        while self.alive:
            self._child.kill()
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() > limit:
                raise EngineStartError(f"the engine process {self.pid} cannot be killed")
        self._row.clear()
        for detached in self._detaching.values():
            detached.set()
        self._control.close()

    async def stop(self) -> None:
        """Let the engine complete its jobs, and wait until its process has ended."""
        if self.ready:
            self._control.send(Stop())
        else:
            self._child.kill()  # it reads no message before its models are loaded
        await self._child.ended()

    def kill(self) -> None:
        """Kill the process."""
        self._child.kill()

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, for at most ``timeout`` seconds."""
        self._child.wait(timeout)

    async def exit_code(self) -> int | None:
        """Wait up to a second for the process to end, and return its exit code; see `Child`."""
        return await self._child.exit_code()
