"""Requests byte by byte, as no client library sends them, and checks that tests share."""

from __future__ import annotations

import re
import socket

import httpx

from tests.server.conftest import ROOT, RunningServer

# Images, by the names of their files.
EXAMPLES = {
    path.stem: path.read_bytes()
    for path in sorted((ROOT / "examples").iterdir())
    if path.suffix in (".png", ".jpg")
}
SNEAKER = EXAMPLES["sneaker"]
# What Pillow, Starlette or Python would say themselves.
LEAKS = re.compile(
    r"Traceback|PIL|cannot identify|object at 0x|truncated file|pydantic|Exception|\.py\b",
    re.IGNORECASE,
)


def assert_problem(response: httpx.Response, status: int, slug: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:tome:problem:{slug}"
    assert problem["status"] == status
    assert problem["instance"].endswith(response.headers["x-request-id"])
    assert problem["title"]
    assert problem["detail"]
    assert not LEAKS.search(response.text), response.text
    return problem


def half_sent(server: RunningServer, path: str = "/classify", query: str = "r=16") -> socket.socket:
    """A connection on which a request was sent, except for most of its body.

    The server may not have read any of it yet.
    """
    connection = server.connect()
    head = f"POST {path}?{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SNEAKER)}\r\n\r\n"
    connection.sendall(head.encode() + SNEAKER[:100])
    return connection


def finish(connection: socket.socket) -> httpx.Response:
    """Send the rest of what `half_sent` began, and read the answer."""
    connection.sendall(SNEAKER[100:])
    with connection:
        return read_response(connection)


def read_response(connection: socket.socket) -> httpx.Response:
    """One response with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        assert chunk, f"the connection ended after {data!r}"
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    length = int(next(value for name, value in headers.items() if name.lower() == "content-length"))
    while len(body) < length:
        body += connection.recv(65536)
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)
