"""Connections on which no request comes, comes too slowly, or comes too often: each harms itself
alone.
"""

from __future__ import annotations

import select
import socket
import struct
import time

import httpx
import pytest

from tests.server.wire import SNEAKER, assert_problem, read_response

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
SECONDS = 2.0


@pytest.fixture(scope="module")
def strict(start_server):
    """A server with little patience, for six connections."""
    patience = {"header_timeout": SECONDS, "send_timeout": SECONDS}
    with start_server(**patience, max_connections=6, levels="0", max_batch=1) as running:
        yield running


def ended(connection: socket.socket) -> bool:
    """Whether the server has ended the connection."""
    try:
        return connection.recv(65536) == b""
    except ConnectionResetError:
        return True


def asks(connection: socket.socket) -> int:
    connection.sendall(HEAD + b"\r\n")
    return read_response(connection).status_code


class TestHeader:
    def test_one_that_drips_is_refused_however_often_something_comes(self, strict):
        with strict.connect() as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.settimeout(0.05)
            answer = b""
            for byte in HEAD + b"X: " + b"x" * 1000:
                connection.send(bytes([byte]))
                try:
                    answer = connection.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    continue
            assert answer, "it was never ended"
            connection.settimeout(10)
            assert_problem(read_response(connection), 408, "slow-header")
            assert ended(connection)
        assert strict.metric('tome_rejected_total{reason="slow-header"}') == 1

    def test_the_second_of_a_connection_is_bounded_too(self, strict):
        with strict.connect() as connection:
            assert asks(connection) == 200
            connection.sendall(HEAD)
            assert_problem(read_response(connection), 408, "slow-header")

    def test_a_connection_that_says_nothing_is_ended(self, strict):
        with strict.connect() as connection:
            assert ended(connection)

    def test_one_that_waits_between_two_requests_is_kept(self, strict):
        with strict.connect() as connection:
            assert asks(connection) == 200
            time.sleep(1.5 * SECONDS)
            assert asks(connection) == 200

    @pytest.mark.parametrize(
        "piece", [b"X: " + b"x" * 4000 + b"\r\n", b"x" * 4000], ids=["many", "long"]
    )
    def test_its_size_is_bounded(self, strict, server, piece):
        with strict.connect() as connection:
            connection.sendall(HEAD + b"X-First: ")
            with pytest.raises(OSError):
                for _ in range(10_000):
                    connection.sendall(piece)
        with server.connect() as connection:  # which has the patience to let all of it come
            connection.sendall(HEAD + b"X-First: ")
            for _ in range(50):
                connection.sendall(b"x" * 66_000)
                if select.select([connection], [], [], 0.2)[0]:
                    break
            assert_problem(read_response(connection), 431, "header-too-large")

    def test_what_is_not_http_gets_a_problem(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"hello\r\n\r\n")
            assert_problem(read_response(connection), 400, "malformed")


class TestBodyAfterItsAnswer:
    def test_one_that_drips_on_is_ended(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert read_response(connection).status_code == 405
            with pytest.raises(OSError):
                for _ in range(100):
                    connection.sendall(b"x")
                    time.sleep(0.1)

    def test_one_that_comes_to_its_end_leaves_a_connection_that_can_be_used(self, strict):
        with strict.connect() as connection:
            connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
            assert read_response(connection).status_code == 405
            connection.sendall(b"x" * 1000)
            time.sleep(1.5 * SECONDS)
            assert asks(connection) == 200


class TestNumber:
    def test_the_longest_idle_gives_way(self, strict):
        kept = [strict.connect() for _ in range(6)]
        assert [asks(connection) for connection in kept] == [200] * 6
        with strict.connect() as one_more:
            assert asks(one_more) == 200
            assert ended(kept[0])
            assert [asks(connection) for connection in kept[1:]] == [200] * 5
        for connection in kept:
            connection.close()

    def test_one_that_never_asked_gives_way_before_one_that_did(self, strict):
        time.sleep(0.2)  # for the connections of the test before
        kept = [strict.connect() for _ in range(5)]
        assert [asks(connection) for connection in kept] == [200] * 5
        with strict.connect() as silent:
            time.sleep(0.1)
            with strict.connect() as one_more:
                assert ended(silent)
                assert [asks(connection) for connection in [*kept, one_more]] == [200] * 6
        for connection in kept:
            connection.close()

    def test_where_all_are_busy_another_is_refused(self, strict):
        time.sleep(0.2)
        head = (
            f"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SNEAKER)}\r\n\r\n".encode()
        )
        busy = [strict.connect() for _ in range(6)]
        for connection in busy:
            connection.sendall(head)
        time.sleep(0.3)
        with strict.connect() as one_more:
            refused = assert_problem(read_response(one_more), 503, "overloaded")
        assert refused["reason"] == "too-many-connections"
        for connection in busy:
            connection.sendall(SNEAKER)
        assert [read_response(connection).status_code for connection in busy] == [200] * 6
        for connection in busy:
            connection.close()
        assert strict.metric('tome_rejected_total{reason="too-many-connections"}') == 1


def test_requests_that_do_not_wait_for_answers_are_bounded(strict):
    def resident() -> int:
        with open(f"/proc/{strict.process.pid}/status") as file:
            return int(file.read().split("VmRSS:")[1].split()[0])

    before = resident()
    with strict.connect() as connection, pytest.raises(OSError):
        for _ in range(200):
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
    assert resident() - before < 40_000
    assert httpx.get(f"{strict.url}/healthz").status_code == 200


def test_a_few_of_them_are_answered_in_order(strict):
    with strict.connect() as connection:
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 8
        )
        data = b""
        while data.count(b"HTTP/1.1 ") < 16 or not data.endswith(b"}"):
            data += connection.recv(65536)
    assert [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]] == [200, 404] * 8


def ask_without_reading(server, connection: socket.socket) -> None:
    """Send requests on ``connection`` until an answer waits in the server, or until it has ended
    the connection.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    for _ in range(1000):
        if server.metric("tome_inflight_requests") == 2:
            return
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
    pytest.fail("the kernel holds all of the answers")


def test_a_client_that_never_reads_is_ended(strict, eventually):
    with socket.socket() as connection:
        began = time.monotonic()
        try:
            ask_without_reading(strict, connection)
        except OSError:  # it has been ended already, though not before its time
            assert time.monotonic() - began > SECONDS
        eventually(lambda: strict.metric("tome_inflight_requests") == 1)
        connection.settimeout(10)
        while not ended(connection):
            pass


def test_a_stop_waits_for_it_no_longer_than_for_others_and_says_so(start_server, tmp_path):
    log = tmp_path / "stderr"
    settings = {"levels": "0", "max_batch": 1, "drain_timeout": 1, "send_timeout": 600}
    with (
        log.open("w") as stderr,
        start_server(stderr=stderr, **settings) as server,
        socket.socket() as connection,
    ):
        ask_without_reading(server, connection)
        connection.sendall(
            HEAD + b"\r\n"
        )  # so that one waits behind the one that is being answered
        server.process.terminate()
        assert server.process.wait(20) == 0
    text = log.read_text()
    assert "1 connections had not got all of their answers, and were cut" in text
    assert "Traceback" not in text


def test_one_that_asks_for_another_protocol_is_answered_in_this_one(strict):
    """RFC 9110, section 7.8: a server may ignore it."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "eA=="}
    with httpx.Client(base_url=strict.url) as client:
        assert client.get("/healthz", headers=upgrade).status_code == 200
        assert client.get("/healthz").status_code == 200


def test_a_reset_is_no_error_of_the_server(strict, eventually):
    for _ in range(50):
        connection = strict.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(HEAD)
        connection.close()
    eventually(strict.ready)
