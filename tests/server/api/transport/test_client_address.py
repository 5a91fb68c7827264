"""The address of a client, as logs and trusted proxies know it."""

from __future__ import annotations

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from server.api.transport.lingering import LingerLimits
from server.system.addresses import without_mapping
from tests.server.api.transport.in_loop import listening, run
from tests.server.system.test_addresses import needs_ipv6


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("::ffff:0:1", "::ffff:0:1"),
        ("/run/socket.file", "/run/socket.file"),
    ],
)
def test_an_ipv4_address_in_an_ipv6_address_is_the_former(address, plain):
    assert without_mapping(address) == plain


async def tell_client(scope: Scope, receive: Receive, send: Send) -> None:
    body = scope["client"][0].encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@needs_ipv6
@pytest.mark.parametrize(
    ("header", "client"), [(b"", b"127.0.0.1"), (b"X-Forwarded-For: 192.0.2.9\r\n", b"192.0.2.9")]
)
def test_an_ipv4_client_of_a_socket_for_both_families_is_trusted_by_its_address(header, client):
    async def test() -> None:
        async with listening(tell_client, LingerLimits(), host="::") as server:
            reader, writer = await server.connect()
            writer.write(b"GET / HTTP/1.0\r\n" + header + b"\r\n")
            assert (await reader.read()).endswith(b"\r\n\r\n" + client)

    run(uvloop.new_event_loop, test())
