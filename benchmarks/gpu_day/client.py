"""One process of closed-loop clients: each resends its request as soon as it has its answer.

Prints one line of JSON. Python alone is too slow to fill a server on a GPU from one process;
several do it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import time
from collections import Counter
from pathlib import Path

from tome_load.connection import Connection, NoAnswer
from tome_load.connections import Connections


async def load(
    url: str, requests: list[tuple[bytes, bytes]], connections: int, begin: float, end: float
) -> dict:
    """Load from now on; what counts is what was answered from ``begin`` to ``end`` (`time.time`).

    Args:
        requests: head and body, sent in turns.
    """
    pool = Connections(url, connections, 10)
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    turns = itertools.cycle(requests)
    offset = time.time() - time.monotonic()

    async def client() -> None:
        connection: Connection | None = None
        while time.time() < end:
            try:
                connection = (
                    connection if connection and connection.usable else await pool.acquire()
                )
                sent = time.monotonic()
                status, _, done = await connection.exchange(next(turns), 20)
            except NoAnswer as error:
                if connection:
                    pool.release(connection)
                failures[error.kind] += 1
                connection = None
                await asyncio.sleep(0.05)
                continue
            if begin <= done + offset <= end:
                if status == 200:
                    latencies.append(round(1000 * (done - sent), 2))
                else:
                    failures[str(status)] += 1
            if status != 200:
                await asyncio.sleep(0.01)

    await asyncio.gather(*(client() for _ in range(connections)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"latencies_ms": latencies, "failures": failures, "cpu_s": used.ru_utime + used.ru_stime}


def head(url: str, path: str, length: int, headers: list[str]) -> bytes:
    """The head of a POST of ``length`` bytes."""
    host = url.split("//")[1]
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {length}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode("latin-1")


def main() -> None:
    """Command line: the body is read from a file; path and headers are arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument(
        "--request", nargs="+", action="append", required=True, help="path, file, headers"
    )
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--begin", type=float, required=True)
    parser.add_argument("--end", type=float, required=True)
    args = parser.parse_args()
    requests = []
    for path, file, *headers in args.request:
        body = Path(file).read_bytes()
        requests.append((head(args.url, path, len(body), headers), body))
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    print(json.dumps(run(load(args.url, requests, args.connections, args.begin, args.end))))


if __name__ == "__main__":
    main()
