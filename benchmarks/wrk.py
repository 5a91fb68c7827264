"""Closed-loop load by wrk over keep-alive connections."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

SCRIPT = Path(__file__).with_name("wrk.lua")
_BOUNDARY = "tome-benchmark-boundary"


@dataclass(frozen=True)
class Body:
    """What is sent: an encoded image, bare or as the one file of a form; or pixels.

    Attributes:
        headers: further ones.
    """

    content: bytes
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Load:
    """What one run of wrk saw; latencies in seconds.

    Attributes:
        stages: of our server, mean seconds of decoding and forward pass of these requests, as it
            timed them itself; 0 where nobody asked.
        requests: how many there were.
    """

    images_per_s: float
    p50: float
    p90: float
    p99: float
    stages: float = 0.0
    requests: int = 0


class FailedRequests(Exception):
    """Some answers were no 2xx, or did not come: the numbers would say nothing."""


def bare(image: bytes) -> Body:
    """The image as the whole body."""
    return Body(image, "image/jpeg")


def form(image: bytes, name: str) -> Body:
    """The image as the file ``name`` of a form (RFC 7578)."""
    head = (
        f'Content-Disposition: form-data; name="{name}"; filename="image.jpg"\r\nContent-Type:'
        " image/jpeg"
    )
    content = (
        f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )
    return Body(content, f"multipart/form-data; boundary={_BOUNDARY}")


def drive(
    urls: Sequence[str],
    body: Path,
    content_type: str,
    connections: int,
    seconds: float,
    headers: Iterable[tuple[str, str]] = (),
) -> Load:
    """Load the server of ``urls``, taken in turn per connection, with the body in ``body``.

    Args:
        headers: further ones of each request.

    Raises:
        FailedRequests: some request failed.
        FileNotFoundError: wrk is not installed.
    """
    parts = [urlsplit(url) for url in urls]
    paths = " ".join(f"{part.path}?{part.query}" if part.query else part.path for part in parts)
    environment = os.environ | {
        "WRK_BODY": str(body),
        "WRK_TYPE": content_type,
        "WRK_HEADERS": "".join(f"{name}: {value}\n" for name, value in headers),
        "WRK_PATHS": paths,
    }
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout",
        "60s",
        "-s",
        str(SCRIPT),
    ]
    command.append(f"{parts[0].scheme}://{parts[0].netloc}")
    printed = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return read(printed)


def read(printed: str) -> Load:
    """The line of JSON that the script printed. Raises `FailedRequests`."""
    found = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    if not found["requests"]:
        raise FailedRequests("no request was answered in time; measure for longer with --seconds")
    if found["failed"]:
        raise FailedRequests(f"{found['failed']} of {found['requests']} requests failed")
    return Load(
        images_per_s=found["requests"] / found["seconds"],
        p50=found["p50"],
        p90=found["p90"],
        p99=found["p99"],
        requests=found["requests"],
    )
