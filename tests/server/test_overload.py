"""Overload, graceful shutdown, and requests before the server is ready."""

from __future__ import annotations

import signal
import socket
import time

import httpx
import pytest

from tests.server.wire import SNEAKER, assert_problem, finish, half_sent, read_response


@pytest.fixture(scope="module")
def small(start_server):
    """A server with three slots."""
    with start_server(
        queue_limit=3, max_body_bytes=60_000, max_inflight_bytes=60_000, body_timeout=20
    ) as running:
        yield running


class TestOverload:
    def test_a_request_without_a_slot_is_refused_before_its_body_is_read(self, small, eventually):
        series = (
            'tome_rejected_total{reason="queue-full"}',
            'tome_requests_total{code="503",model="",route="/classify"}',
        )
        before = [small.metric(name) for name in series]
        held = [half_sent(small) for _ in range(3)]
        eventually(lambda: small.metric("tome_inflight_requests") == 4)
        with small.connect() as connection:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            )
            response = read_response(connection)
        problem = assert_problem(response, 503, "overloaded")
        assert problem["reason"] == "queue-full"
        assert int(response.headers["retry-after"]) >= 1
        assert httpx.get(f"{small.url}/readyz", timeout=30).status_code == 200
        assert [finish(connection).status_code for connection in held] == [200] * 3
        assert [small.metric(name) for name in series] == [count + 1 for count in before]

    def test_each_file_without_a_slot_gets_a_problem(self, small):
        response = httpx.post(
            f"{small.url}/classify?r=16", files=[("f", ("f", SNEAKER))] * 5, timeout=30
        )
        statuses = [result.get("status", 200) for result in response.json()["results"]]
        assert statuses == [200] * 3 + [503] * 2

    def test_the_bytes_of_all_bodies_together_are_limited(self, small, eventually):
        held = small.connect()
        held.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 59_000
        )

        def is_refused() -> bool:
            response = httpx.post(f"{small.url}/classify", content=b"x" * 5000, timeout=30)
            if response.status_code != 503:
                return False  # the server has not read the first body yet
            return assert_problem(response, 503, "overloaded")["reason"] == "memory-full"

        eventually(is_refused)
        held.close()
        eventually(lambda: small.metric("tome_inflight_requests") == 1)

    def test_the_slot_of_a_client_that_disconnects_is_free_again(self, small, eventually):
        before = small.metric('tome_cancelled_total{stage="body"}')
        for _ in range(3):
            half_sent(small).close()
        eventually(lambda: small.metric('tome_cancelled_total{stage="body"}') == before + 3)
        # These clients disconnect while their image is decoded, waits or runs.
        for _ in range(20):
            connection = half_sent(small)
            connection.sendall(SNEAKER[100:])
            connection.close()
        eventually(lambda: small.metric("tome_inflight_requests") == 1)
        eventually(lambda: small.metric("tome_queue_jobs") == 0)
        results = httpx.post(
            f"{small.url}/classify", files=[("f", ("f", SNEAKER))] * 3, timeout=30
        ).json()["results"]
        assert [result.get("status", 200) for result in results] == [200] * 3


def test_a_stop_answers_all_accepted_requests(start_server, eventually):
    with start_server(queue_limit=3, body_timeout=20) as server:
        held = [half_sent(server) for _ in range(2)]
        idle = server.connect()
        eventually(lambda: server.metric("tome_inflight_requests") == 3)
        server.process.terminate()
        eventually(lambda: httpx.get(f"{server.url}/readyz", timeout=30).status_code == 503)
        refused = httpx.post(f"{server.url}/classify", content=SNEAKER, timeout=30)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "draining"
        assert refused.headers["connection"] == "close"
        with server.connect() as early:
            early.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 15000000\r\n\r\n")
            early.sendall(b"x" * 15_000_000)
            assert_problem(read_response(early), 503, "overloaded")
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
        # The same in the words of the Open Inference Protocol.
        for path in ("health/ready", "models/fashion-mnist/ready"):
            response = httpx.get(f"{server.url}/v2/{path}", timeout=30)
            assert response.status_code == 503
            assert "stopping" in response.json()["error"]
        refused = httpx.post(
            f"{server.url}/v2/models/fashion-mnist/infer", content=b"{}", timeout=30
        )
        assert refused.status_code == 503
        assert httpx.get(f"{server.url}/v2/health/live", timeout=30).json() == {"live": True}
        responses = [finish(connection) for connection in held]
        assert [response.status_code for response in responses] == [200, 200]
        assert all(response.headers["connection"] == "close" for response in responses)
        assert server.process.wait(60) == 0
        idle.close()


@pytest.mark.parametrize("engines_started", [False, True])
def test_a_stop_during_the_start_is_clean(start_server, eventually, engines_started):
    with start_server(wait=False) as server:
        if engines_started:
            eventually(server.engines)
        else:
            time.sleep(0.2)
        server.process.terminate()
        assert server.process.wait(60) in ((0,) if engines_started else (0, -signal.SIGTERM))


def test_a_slow_body_cannot_delay_a_stop(start_server, eventually):
    with start_server(levels="0", max_batch=1, body_timeout=600, drain_timeout=10) as server:
        held = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        server.process.terminate()
        with held:
            response = read_response(held)
        assert_problem(response, 408, "slow-body")
        assert server.process.wait(60) == 0


def test_a_second_signal_forces_a_stop(start_server, eventually, tmp_path):
    log = tmp_path / "stderr"
    timeouts = {"body_timeout": 600, "drain_timeout": 600}
    with (
        log.open("w") as stderr,
        start_server(stderr=stderr, levels="0", max_batch=1, **timeouts) as server,
    ):
        held = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        server.process.terminate()
        eventually(lambda: not server.ready())
        server.process.terminate()
        assert server.process.wait(60) == 1
        held.close()
    assert "1 requests were cut off" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_requests_before_the_server_is_ready_are_refused(start_server, eventually):
    with start_server(wait=False) as server:
        eventually(server.engines)
        server.signal_engine(signal.SIGSTOP)  # it must not become ready yet
        eventually(lambda: is_listening(server))
        assert httpx.get(f"{server.url}/healthz", timeout=30).status_code == 200
        not_ready = httpx.get(f"{server.url}/readyz", timeout=30)
        assert assert_problem(not_ready, 503, "overloaded")["reason"] == "not-ready"
        refused = httpx.post(f"{server.url}/classify?r=x", content=SNEAKER, timeout=30)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "not-ready"
        assert_problem(httpx.get(f"{server.url}/models", timeout=30), 503, "overloaded")
        server.signal_engine(signal.SIGCONT)
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_an_address_in_use_fails_the_start(server, start_server):
    with start_server(wait=False, port=server.port) as second:
        assert second.process.wait(60) == 1


def is_listening(server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0
