"""Which API process of a server has accepted which connection (Linux)."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from tests.chaos.client import Connection, Lost, encode
from tests.server.conftest import RunningServer

GREETING = encode("GET", "/healthz")
_SECONDS = 60.0
_TRIES = 4  # for each API process, before the connections are closed and opened anew
_PAUSE_SECONDS = 0.1


def owner(server: RunningServer, connection: Connection) -> int:
    """The API process that has accepted ``connection``; 0 if none has, or it has closed it."""
    inode = _inode(server.port, connection.local_port)
    for pid in server.api_processes():
        if f"socket:[{inode}]" in _open_files(pid):
            return pid
    return 0


def _inode(port: int, client_port: int) -> str:
    ends = (f":{port:04X}", f":{client_port:04X}")
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        row = line.split()
        if row[1].endswith(ends[0]) and row[2].endswith(ends[1]):
            return row[9]
    return ""


def _open_files(pid: int) -> set[str]:
    found = set()
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found.add(os.readlink(path))
            except FileNotFoundError:  # closed meanwhile
                continue
    except (FileNotFoundError, ProcessLookupError):  # the process has ended
        return set()
    return found


async def connect_to_each(server: RunningServer) -> list[Connection]:
    """One connection to each API process.

    Raises:
        TimeoutError: a process has accepted none for a minute.
    """
    async with asyncio.timeout(_SECONDS):
        while True:
            opened = [await Connection.open(server.port) for _ in _tries(server)]
            found: dict[int, Connection] = {}
            for connection in opened:
                pid = await greet(server, connection)
                if pid and pid not in found:
                    found[pid] = connection
                else:
                    connection.close()
            if found and set(found) == set(server.api_processes()):
                return list(found.values())
            for connection in found.values():
                connection.close()
            await asyncio.sleep(_PAUSE_SECONDS)


async def greet(server: RunningServer, connection: Connection) -> int:
    """The owner of a new connection, once it has answered a request; 0 if it has not."""
    try:
        reply = await connection.ask(GREETING)
    except Lost:
        return 0
    return owner(server, connection) if reply.status == 200 else 0


def _tries(server: RunningServer) -> range:
    return range(_TRIES * max(1, len(server.api_processes())))
