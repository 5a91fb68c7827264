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

import aiohttp


async def load(
    url: str,
    requests: list[tuple[str, bytes, dict[str, str]]],
    connections: int,
    begin: float,
    end: float,
) -> dict:
    """Load from now on; what counts is what was answered from ``begin`` to ``end`` (`time.time`).

    Args:
        requests: path, body and headers, sent in turns.
    """
    latencies: list[float] = []
    failures: Counter[str] = Counter()
    turns = itertools.cycle(requests)

    async def client(session: aiohttp.ClientSession) -> None:
        while time.time() < end:
            path, body, headers = next(turns)
            sent = time.monotonic()
            try:
                async with session.post(url + path, data=body, headers=headers) as answer:
                    await answer.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                failures[type(error).__name__] += 1
                await asyncio.sleep(0.05)
                continue
            if begin <= time.time() <= end:
                if answer.status == 200:
                    latencies.append(round(1000 * (time.monotonic() - sent), 2))
                else:
                    failures[str(answer.status)] += 1
            if answer.status != 200:
                await asyncio.sleep(0.01)

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections),
        timeout=aiohttp.ClientTimeout(total=20),
    ) as session:
        await asyncio.gather(*(client(session) for _ in range(connections)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"latencies_ms": latencies, "failures": failures, "cpu_s": used.ru_utime + used.ru_stime}


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
        fields = dict(header.split(": ", 1) for header in headers)
        requests.append((path, Path(file).read_bytes(), fields))
    try:
        import uvloop

        run = uvloop.run
    except ImportError:
        run = asyncio.run
    print(json.dumps(run(load(args.url, requests, args.connections, args.begin, args.end))))


if __name__ == "__main__":
    main()
