"""One server after the other under load, with its CPU time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks import servers
from benchmarks.front_end.bodies import Content
from benchmarks.front_end.contenders import OURS, Contender
from benchmarks.front_end.cpu_time import seconds_by_kind, snapshot, total_seconds
from benchmarks.front_end.report import Run
from benchmarks.wrk import FailedRequests, Load, drive


@dataclass(frozen=True)
class Options:
    """How long and where.

    Attributes:
        seconds: of each load.
        warm_seconds: of the load before each, which does not count.
        folder: for files that the run needs.
        logs: folder for what the servers print.
    """

    seconds: float
    warm_seconds: float
    folder: Path
    logs: Path


def measure(
    contender: Contender,
    cores: int,
    contents: Mapping[str, Content],
    number: int,
    options: Options,
    console: Console,
) -> Iterator[Run]:
    """Start ``contender``, load it with each body on ``cores`` cores, and end it.

    Args:
        number: of the round.

    Raises:
        NotReady: it does not come up.
        FailedRequests: some request failed.
        FileNotFoundError: wrk is not installed.
    """
    port = _free_port()
    command, variables = contender.at_port(port)
    log = options.logs / f"{contender.name}.log"
    base = f"http://127.0.0.1:{port}"
    first_path, first_body = contender.address(next(iter(contents.values())))
    with (
        pinned(cores),
        servers.session(command, base + first_path, first_body, log, variables) as root,
    ):
        for name, content in contents.items():
            console.print(f"  {contender.title}, cores: {cores}, {name}: ", style="dim", end="")
            run = _load(contender, cores, (name, content), number, base, root, options)
            console.print(
                f"{run.images_per_s:.0f} images/s, {1000 * run.cpu_per_image():.2f} ms of CPU an"
                " image",
                style="dim",
            )
            yield run


def _load(
    contender: Contender,
    cores: int,
    named: tuple[str, Content],
    number: int,
    base: str,
    root: int,
    options: Options,
) -> Run:
    name, content = named
    path, body = contender.address(content)
    file = options.folder / "body"
    file.write_bytes(body.content)

    def load(seconds: float) -> Load:
        return drive(
            [base + path], file, body.content_type, content.connections, seconds, body.headers
        )

    with suppress(FailedRequests):  # some processes of the server may still start
        load(options.warm_seconds)
    before = snapshot(root)
    found = load(options.seconds)
    after = snapshot(root)
    return Run(
        contender=contender.name,
        api_processes=contender.api_processes,
        cores=cores,
        body=name,
        round=number,
        requests=found.requests,
        requests_per_s=found.images_per_s,
        images=content.images,
        p50=found.p50,
        p99=found.p99,
        cpu=total_seconds(before, after),
        cpu_by_kind=seconds_by_kind(before, after, root) if contender.name == OURS else {},
    )


@contextmanager
def pinned(cores: int) -> Iterator[None]:
    """Have this process, and those that it starts in the block, run on the first ``cores`` cores.

    Raises:
        ValueError: there are fewer.
    """
    usable = os.sched_getaffinity(0)
    if cores > len(usable):
        raise ValueError(f"{cores} cores are asked for, and {len(usable)} are usable")
    os.sched_setaffinity(0, sorted(usable)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
