"""One decode worker, as the API process uses it: start, tasks, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from server.allocator import KEPT_BYTES
from server.decoding.messages import (
    MAX_BYTES,
    BadReply,
    Done,
    Failed,
    Ready,
    Refused,
    StaleReply,
    Task,
    unpack_reply,
)
from server.media.modality import Modality

log = logging.getLogger("tome.decoding")

_MODULE = "server.decoding"
_POLL_SECONDS = 0.01
_EXIT_SECONDS = 1.0
# Of the API process, a worker needs how to find Python and its libraries, and no secret.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL")


class Loss(StrEnum):
    """Why a worker was lost."""

    TIMEOUT = "timeout"  # its task took too long
    CPU = "cpu"  # its task took too much CPU time
    MEMORY = "memory"  # its task took too much memory
    CRASH = "crash"  # it ended by itself, or was killed by another process
    PROTOCOL = "protocol"  # it sent what is no reply
    CANCELLED = "cancelled"  # nobody waits for its task any more


class WorkerLost(Exception):
    """The worker was lost before it had done its task. ``loss`` says why."""

    def __init__(self, loss: Loss) -> None:
        super().__init__(loss)
        self.loss = loss


class TaskNotBegun(Exception):
    """The worker was lost before it had begun the task, which another one can do."""


class WorkerStartError(Exception):
    """The worker ended or failed before it was ready. The message says why."""


class DecodeProcess:
    """One worker process, from its start to its end.

    The event loop's thread must start it: it is killed when the thread that started it ends.

    Args:
        decoders: what it runs, by modality, as ``module:function``.
        address_space: most bytes of memory that it maps.

    Raises:
        OSError: the system has no more files, processes or memory.

    Attributes:
        loss: why it was lost; known when a task has failed with it, or it is closed.
        retired: whether it was ended without a loss.
        tasks: how many it was given.
        gone: set when it can be given no task any more.
    """

    def __init__(self, decoders: Mapping[Modality, str], address_space: int) -> None:
        self.loss: Loss | None = None
        self.retired = False
        self.tasks = 0
        self.gone = asyncio.Event()
        self._message: asyncio.Future[bytes] | None = None
        # Datagrams: a message comes whole or not at all.
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, contextlib.ExitStack() as after_failure:
            after_failure.callback(self._socket.close)
            self._process = _spawn(theirs.fileno(), decoders, address_space)
            after_failure.pop_all()
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._process.pid

    async def wait_until_ready(self, timeout: float) -> Ready:
        """Wait until it accepts tasks.

        Raises:
            WorkerStartError: it has failed, or takes longer than ``timeout`` seconds.
        """
        try:
            message = await self._wait(timeout)
            reply = unpack_reply(message, task=None)
        except TimeoutError:
            raise WorkerStartError(f"it was not ready within {timeout:g} s") from None
        except EOFError:
            code = await self._exit_code()
            raise WorkerStartError(f"it ended while starting (exit code {code})") from None
        except BadReply as error:
            raise WorkerStartError(str(error)) from error
        if isinstance(reply, Failed):
            log.error("decode worker %d: %s", self.pid, reply.text)
            raise WorkerStartError(reply.text.strip().rpartition("\n")[2])
        assert isinstance(reply, Ready)
        return reply

    async def run(self, task: Task, body: int, result: int, timeout: float) -> Done | Refused:
        """Give the worker a task, and return its reply. Cancelling kills the worker.

        Args:
            body, result: descriptors of the memory with the body and for the inputs.
            timeout: seconds after which it is killed.

        Raises:
            TaskNotBegun: it was lost before, or because of an earlier task.
            WorkerLost: it is killed or has ended.
        """
        self._send(task.pack(), [body, result])
        try:
            message = await self._wait(timeout)
            reply = unpack_reply(message, task)
        except asyncio.CancelledError:
            self.lose(Loss.CANCELLED)
            raise
        except TimeoutError:
            self.lose(Loss.TIMEOUT)
        except EOFError:
            self.lose(await self._find_loss())
        except StaleReply:
            self.lose(Loss.PROTOCOL)
            raise TaskNotBegun from None
        except BadReply as error:
            log.error("decode worker %d: %s", self.pid, error)
            self.lose(Loss.PROTOCOL)
        else:
            if isinstance(reply, Done | Refused):
                return reply
            self._lose_failed(reply)
        assert self.loss is not None
        raise WorkerLost(self.loss)

    def lose(self, loss: Loss) -> None:
        """Kill the worker because of ``loss``, unless it is lost already."""
        if self.loss is None:
            self.loss = loss
        self.kill()
        self.gone.set()

    def retire(self) -> None:
        """End a worker that has no task, though nothing is wrong with it."""
        self.retired = True
        self.kill()
        self.gone.set()

    def kill(self) -> None:
        """Kill the process and what it may have started."""
        if self._process.returncode is None:  # its number is its own until it is waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> None:
        """Block until the process has ended, for at most ``timeout`` seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    async def close(self) -> None:
        """Kill the process, and wait until it has ended and its memory is free."""
        self.kill()
        self.gone.set()
        if self.loss is None and not self.retired:
            self.loss = await self._find_loss()
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._deliver(b"")
        # A killed process ends at once, unless the kernel is stuck; then nothing may replace it.
        while self._process.poll() is None:
            await asyncio.sleep(_POLL_SECONDS)

    def _send(self, message: bytes, descriptors: list[int]) -> None:
        """Send a task. It fits into the socket's buffer, as there is one at a time."""
        if not self.gone.is_set():
            self._receive()  # what has come by now is no reply to this task
        if self.gone.is_set():
            raise TaskNotBegun
        try:
            socket.send_fds(self._socket, [message], descriptors)
        except OSError:
            self.gone.set()
            raise TaskNotBegun from None
        self.tasks += 1

    async def _wait(self, timeout: float) -> bytes:
        """Return the next message.

        Raises:
            TimeoutError: none has come within ``timeout`` seconds.
            EOFError: the process has ended.
        """
        self._message = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait([self._message], timeout=timeout)
            if not self._message.done():
                self._receive()  # while this process was suspended, it may have come in time
            if not self._message.done():
                raise TimeoutError
            message = self._message.result()
        finally:
            self._message.cancel()
            self._message = None
        if not message:
            raise EOFError
        return message

    def _receive(self) -> None:
        """Take a message from the socket if there is one. Called by the event loop."""
        try:
            message = self._socket.recv(MAX_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            asyncio.get_running_loop().remove_reader(self._socket)
            self.gone.set()
        if not self._deliver(message) and message:
            self.lose(Loss.PROTOCOL)  # nobody asked

    def _deliver(self, message: bytes) -> bool:
        """Give ``message``, empty at the end, to who waits for one; return whether somebody did."""
        if self._message is None or self._message.done():
            return False
        self._message.set_result(message)
        return True

    def _lose_failed(self, reply: Failed | Ready) -> None:
        """Kill the worker because of a reply that says so, or should not be."""
        if isinstance(reply, Ready):
            self.lose(Loss.PROTOCOL)
        elif reply.out_of_memory:
            self.lose(Loss.MEMORY)
        else:
            log.error("decode worker %d failed: %s", self.pid, reply.text)
            self.lose(Loss.CRASH)

    async def _find_loss(self) -> Loss:
        """Return why the process has ended by itself."""
        code = await self._exit_code()
        return Loss.CPU if code == -signal.SIGXCPU else Loss.CRASH

    async def _exit_code(self) -> int | None:
        """Wait up to a second for the process to end, and return its exit code.

        It has closed its socket, so that its code is set, which killing it does not change.
        """
        self.kill()
        limit = time.monotonic() + _EXIT_SECONDS
        while self._process.poll() is None and time.monotonic() < limit:
            await asyncio.sleep(_POLL_SECONDS)
        return self._process.returncode


def _spawn(
    descriptor: int, decoders: Mapping[Modality, str], address_space: int
) -> subprocess.Popen[bytes]:
    """Start a plain Python interpreter that inherits ``descriptor`` and no other file.

    It leads a process group of its own, so that signals to that of the API process pass it by, and
    that what it starts can be killed with it.
    """
    numbers = [str(descriptor), str(address_space)]
    functions = [f"{modality}={function}" for modality, function in decoders.items()]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, *numbers, *functions],
        env=_environment(),
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )


def _environment() -> dict[str, str]:
    """Return the environment of a worker."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The worker imports this very package, never one of that name in the working directory, which
    # the option -P leaves out of the path.
    package_root = str(Path(__file__).parents[2])
    search_path = [package_root, os.environ.get("PYTHONPATH", "")]
    return inherited | {
        "PYTHONPATH": os.pathsep.join(filter(None, search_path)),
        # One thread: namespaces need it, and others would only map memory.
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        # glibc keeps what one body took for the next: to map it anew costs a third of a sound's
        # time.
        "MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES // 2),
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    }
