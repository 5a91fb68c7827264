"""Connections without a request, with a slow one, or with too many: none affects the others."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time

import httpx
import pytest

from tests.server.wire import SNEAKER, assert_problem, read_response

HEADER = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
TIMEOUT_SECONDS = 2.0


@pytest.fixture(scope="module")
def strict(start_server):
    """A server with short timeouts and at most six connections."""
    timeouts = {"header_timeout": TIMEOUT_SECONDS, "send_timeout": TIMEOUT_SECONDS}
    with start_server(**timeouts, max_connections=6, levels="0", max_batch=1) as running:
        yield running


def is_closed(connection: socket.socket) -> bool:
    """Wait for data or the end of the connection. Return whether it has ended."""
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


def request_status(connection: socket.socket) -> int:
    """Send one request, and return the status of its response."""
    connection.sendall(HEADER + b"\r\n")
    return read_response(connection).status_code


class TestHeader:
    def test_one_that_arrives_byte_by_byte_is_refused_after_the_timeout(self, strict):
        refused = 'tome_rejected_total{reason="slow-header"}'
        before = strict.metric(refused)
        with strict.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(0.05)
            answer = b""
            for byte in HEADER + b"X: " + b"x" * 1000:
                connection.send(bytes([byte]))
                try:
                    answer = connection.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    continue
            assert answer, "the connection was never closed"
            connection.settimeout(10)
            assert_problem(read_response(connection), 408, "slow-header")
            assert is_closed(connection)
        assert strict.metric(refused) == before + 1

    def test_the_timeout_holds_for_the_second_one_of_a_connection_too(self, strict):
        with strict.connect() as connection:
            assert request_status(connection) == 200
            connection.sendall(HEADER)
            assert_problem(read_response(connection), 408, "slow-header")

    def test_a_connection_without_a_request_is_closed(self, strict):
        with strict.connect() as connection:
            assert is_closed(connection)

    def test_a_connection_between_two_requests_is_kept_alive(self, strict):
        with strict.connect() as connection:
            assert request_status(connection) == 200
            time.sleep(1.5 * TIMEOUT_SECONDS)
            assert request_status(connection) == 200

    @pytest.mark.parametrize(
        "piece", [b"X: " + b"x" * 4000 + b"\r\n", b"x" * 4000], ids=["many", "long"]
    )
    def test_its_size_is_limited(self, strict, server, piece):
        with strict.connect() as connection:
            connection.sendall(HEADER + b"X-First: ")
            # The server reads on after its refusal, but not for ever.
            with pytest.raises(OSError):
                for _ in range(1_000):
                    connection.sendall(piece * 25)
        # A server with a long header timeout receives all of it.
        with server.connect() as connection:
            connection.sendall(HEADER + b"X-First: ")
            with contextlib.suppress(OSError):  # the server may have answered and closed it
                for _ in range(50):
                    connection.sendall(b"x" * 66_000)
                    if select.select([connection], [], [], 0.2)[0]:
                        break
            assert_problem(read_response(connection), 431, "header-too-large")

    def test_data_that_is_not_http_gets_a_problem(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"hello\r\n\r\n")
            assert_problem(read_response(connection), 400, "malformed")


class TestBodyAfterItsResponse:
    def test_a_connection_whose_body_arrives_too_slowly_is_closed(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert read_response(connection).status_code == 405
            with pytest.raises(OSError):
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.1)

    def test_a_connection_whose_body_is_complete_is_kept_alive(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert read_response(connection).status_code == 405
            connection.sendall(b"x" * 1000)
            time.sleep(1.5 * TIMEOUT_SECONDS)
            assert request_status(connection) == 200


class TestNumberOfConnections:
    @pytest.fixture(autouse=True)
    def no_connections(self, strict, eventually):
        """Wait until the server has closed the connections of the test before."""
        eventually(lambda: strict.connections() == 0)

    def test_the_longest_idle_is_closed_for_a_new_one(self, strict):
        connections = [strict.connect() for _ in range(6)]
        assert [request_status(connection) for connection in connections] == [200] * 6
        with strict.connect() as one_more:
            assert request_status(one_more) == 200
            assert is_closed(connections[0])
            assert [request_status(connection) for connection in connections[1:]] == [200] * 5
        for connection in connections:
            connection.close()

    def test_an_unused_one_is_closed_before_one_that_was_used(self, strict):
        connections = [strict.connect() for _ in range(5)]
        assert [request_status(connection) for connection in connections] == [200] * 5
        # Connections are accepted in their order: the silent one first.
        with strict.connect() as silent, strict.connect() as one_more:
            assert is_closed(silent)
            statuses = [request_status(connection) for connection in [*connections, one_more]]
            assert statuses == [200] * 6
        for connection in connections:
            connection.close()

    def test_a_new_one_is_refused_while_all_are_busy(self, strict, eventually):
        rejected = 'tome_rejected_total{reason="too-many-connections"}'
        before = strict.metric(rejected)
        eventually(lambda: strict.connections() == 0)
        head = (
            "POST /classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            f"Content-Length: {len(SNEAKER)}\r\n\r\n"
        )
        busy = [strict.connect() for _ in range(6)]
        for connection in busy:
            connection.sendall(head.encode())
            # The server sends this when it waits for the body (RFC 9110, section 10.1.1).
            assert connection.recv(25, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n"
        with strict.connect() as one_more:
            refused = assert_problem(read_response(one_more), 503, "overloaded")
        assert refused["reason"] == "too-many-connections"
        for connection in busy:
            connection.sendall(SNEAKER)
        assert [read_response(connection).status_code for connection in busy] == [200] * 6
        for connection in busy:
            connection.close()
        assert strict.metric(rejected) == before + 1


def test_pipelined_requests_are_limited(strict):
    def resident_kilobytes() -> int:
        with open(f"/proc/{strict.process.pid}/status") as file:
            return int(file.read().split("VmRSS:")[1].split()[0])

    before = resident_kilobytes()
    with strict.connect() as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
    assert resident_kilobytes() - before < 40_000
    assert httpx.get(f"{strict.url}/healthz").status_code == 200


def test_a_few_pipelined_requests_are_answered_in_order(strict):
    with strict.connect() as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 8
        )
        data = b""
        while data.count(b"HTTP/1.1 ") < 16 or not data.endswith(b"}"):
            data += connection.recv(65536)
    assert [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 404] * 8


def send_without_reading(server, connection: socket.socket) -> None:
    """Send requests until a response waits in the server, or the server closes the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    for _ in range(1000):
        if server.metric("tome_inflight_requests") == 2:
            return
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
    pytest.fail("the kernel holds all responses")


def test_the_connection_of_a_client_that_never_reads_is_closed(strict, eventually):
    with socket.socket() as connection:
        began = time.monotonic()
        try:
            send_without_reading(strict, connection)
        except OSError:  # the server has closed it already, after the timeout
            assert time.monotonic() - began > TIMEOUT_SECONDS
        eventually(lambda: strict.metric("tome_inflight_requests") == 1)
        connection.settimeout(10)
        while not is_closed(connection):
            pass


def test_a_stop_aborts_it_after_the_drain_timeout_and_logs_it(start_server, tmp_path):
    log = tmp_path / "stderr"
    settings = {"levels": "0", "max_batch": 1, "drain_timeout": 1, "send_timeout": 600}
    with (
        log.open("w") as stderr,
        start_server(stderr=stderr, **settings) as server,
        socket.socket() as connection,
    ):
        send_without_reading(server, connection)
        # One more request waits behind the one in flight.
        connection.sendall(HEADER + b"\r\n")
        server.process.terminate()
        assert server.process.wait(20) == 0
    text = log.read_text()
    assert "1 connections were cut before their responses were complete" in text
    assert "Traceback" not in text


def test_an_upgrade_to_another_protocol_is_ignored(strict):
    """RFC 9110, section 7.8: a server may ignore it."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "eA=="}
    with httpx.Client(base_url=strict.url) as client:
        assert client.get("/healthz", headers=upgrade).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_clients_that_reset_their_connection_leave_the_server_ready(strict, eventually):
    for _ in range(50):
        connection = strict.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(HEADER)
        connection.close()
    eventually(strict.ready)
