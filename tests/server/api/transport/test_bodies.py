"""A body reaches the application as it was sent, however it arrives."""

from __future__ import annotations

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from server.api.transport.lingering import LingerLimits
from tests.server.api.transport.in_loop import listening, run, until

LARGE = bytes(range(256)) * 10_000


class Echo:
    """Returns the body; begins to receive it once ``arrived`` bytes of it are in memory."""

    def __init__(self, arrived: int) -> None:
        self.arrived = arrived
        self.messages: list[bytes] = []
        self.kept_as: type | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = receive.__self__  # type: ignore[attr-defined]
        await until(lambda: len(cycle.body) >= self.arrived)
        self.kept_as = type(cycle.body)
        more_body = True
        while more_body:
            message = await receive()
            self.messages.append(message["body"])
            more_body = message["more_body"]
        body = b"".join(self.messages)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def chunked(body: bytes, size: int) -> bytes:
    """``body`` in chunks of ``size`` bytes."""
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""])


@pytest.mark.parametrize("arrived", [0, 3, 1000])
@pytest.mark.parametrize(
    ("framing", "body", "sent", "kept_as"),
    [
        (b"Content-Length: 1000", LARGE[:1000], LARGE[:1000], bytes),
        (b"Content-Length: 2560000", LARGE, LARGE, None),
        (b"Transfer-Encoding: chunked", LARGE[:1000], chunked(LARGE[:1000], 1), bytearray),
        (b"Transfer-Encoding: chunked", LARGE, chunked(LARGE, 1001), None),
    ],
    ids=["short", "long", "short in many chunks", "long in many chunks"],
)
def test_it_is_whole_and_kept_without_copies_if_it_comes_alone(
    framing, body, sent, kept_as, arrived
):
    echo = Echo(arrived)

    async def test() -> None:
        async with listening(echo, LingerLimits()) as server:
            reader, writer = await server.connect()
            writer.write(b"POST / HTTP/1.0\r\nHost: x\r\n" + framing + b"\r\n\r\n" + sent)
            response = await reader.read()
            _, _, content = response.partition(b"\r\n\r\n")
            assert content == body

    run(uvloop.new_event_loop, test())
    assert {type(message) for message in echo.messages} == {bytes}
    # Of a long body it depends on the kernel how much comes at once.
    if arrived and kept_as is not None:
        assert echo.kept_as is kept_as
