"""CPU time of all processes of a server, by what they do, as Linux counts it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_SECONDS_PER_TICK = 1 / os.sysconf("SC_CLK_TCK")

PARENT = "parent"
API_MAIN = "API, main threads"
API_OTHER = "API, other threads"
ENGINES = "engines"
OTHER = "other"
KINDS = (PARENT, API_MAIN, API_OTHER, ENGINES, OTHER)


@dataclass(frozen=True)
class Process:
    """One process of a server, and what it has used so far.

    Attributes:
        started: in ticks since the machine started; a process number may be used again.
        command: its arguments, separated by spaces.
        seconds: of CPU, of all its threads, also those that have ended.
        main_seconds: of CPU, of its main thread.
    """

    pid: int
    parent: int
    session: int
    started: int
    command: str
    seconds: float
    main_seconds: float


Snapshot = Mapping[tuple[int, int], Process]


def snapshot(root: int) -> Snapshot:
    """Return ``root``, the processes of its session, and the descendants of both.

    They are by number and start.
    """
    everything = {process.pid: process for process in _all_processes()}
    members: set[int] = set()

    def belongs(process: Process) -> bool:
        if process.pid == root or process.session == root or process.pid in members:
            return True
        parent = everything.get(process.parent)
        return parent is not None and parent.pid != process.pid and belongs(parent)

    members.update(pid for pid, process in everything.items() if belongs(process))
    return {(pid, everything[pid].started): everything[pid] for pid in members}


def total_seconds(before: Snapshot, after: Snapshot) -> float:
    """Return the CPU seconds between two snapshots of one server.

    A process that ended between them does not count.
    """
    return sum(
        process.seconds - (before[key].seconds if key in before else 0.0)
        for key, process in after.items()
    )


def seconds_by_kind(before: Snapshot, after: Snapshot, root: int) -> dict[str, float]:
    """Return the CPU seconds of our server between two snapshots, for each of `KINDS`.

    Where no process is an API process of its own, ``root`` is the one.
    """
    found = dict.fromkeys(KINDS, 0.0)
    has_api = any("server.api" in process.command for process in after.values())
    for key, process in after.items():
        previous = before.get(key)
        seconds = process.seconds - (previous.seconds if previous else 0.0)
        main_seconds = process.main_seconds - (previous.main_seconds if previous else 0.0)
        kind = _kind(process, root, has_api)
        if kind == API_MAIN:
            found[API_MAIN] += main_seconds
            found[API_OTHER] += max(seconds - main_seconds, 0.0)
        else:
            found[kind] += seconds
    return found


def _kind(process: Process, root: int, has_api: bool) -> str:
    """`API_MAIN` stands for an API process."""
    if "server.engine" in process.command:
        return ENGINES
    if "server.api" in process.command:
        return API_MAIN
    if process.pid == root:
        return PARENT if has_api else API_MAIN
    return OTHER


def _all_processes() -> Iterator[Process]:
    for folder in _PROC.iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                yield _read(int(folder.name))


def _read(pid: int) -> Process:
    folder = _PROC / str(pid)
    fields = _stat_fields(folder / "stat")
    main = _stat_fields(folder / "task" / str(pid) / "stat")
    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        started=int(fields[19]),
        command=command,
        seconds=_cpu_seconds(fields),
        main_seconds=_cpu_seconds(main),
    )


def _stat_fields(path: Path) -> list[str]:
    """Return the fields of proc_pid_stat(5) from the third, the state, on."""
    return path.read_text().rpartition(")")[2].split()


def _cpu_seconds(fields: list[str]) -> float:
    """User and system time."""
    return (int(fields[11]) + int(fields[12])) * _SECONDS_PER_TICK
