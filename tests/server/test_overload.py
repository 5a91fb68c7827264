"""What happens when there is too much work, or none is taken any more."""

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
    def test_the_fourth_is_refused_without_its_body_being_read(self, small, eventually):
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
        assert httpx.get(f"{small.url}/readyz").status_code == 200
        assert [finish(connection).status_code for connection in held] == [200] * 3
        assert small.metric('tome_rejected_total{reason="queue-full"}') == 1
        assert small.metric('tome_requests_total{code="503",model="",route="/classify"}') == 1

    def test_files_without_a_slot_get_a_problem_in_their_place(self, small):
        response = httpx.post(
            f"{small.url}/classify?r=16", files=[("f", ("f", SNEAKER))] * 5, timeout=30
        )
        statuses = [result.get("status", 200) for result in response.json()["results"]]
        assert statuses == [200] * 3 + [503] * 2

    def test_bytes_of_all_bodies_are_bounded(self, small):
        held = small.connect()
        held.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + b"x" * 59_000
        )
        time.sleep(0.3)
        response = httpx.post(f"{small.url}/classify", content=b"x" * 5000)
        assert assert_problem(response, 503, "overloaded")["reason"] == "memory-full"
        held.close()

    def test_a_client_that_goes_away_gives_its_slot_back(self, small, eventually):
        before = small.metric('tome_cancelled_total{stage="body"}')
        for _ in range(3):
            half_sent(small).close()
        eventually(lambda: small.metric('tome_cancelled_total{stage="body"}') == before + 3)
        for _ in range(20):  # these go away while their image is decoded, waits or runs
            connection = half_sent(small)
            connection.sendall(SNEAKER[100:])
            connection.close()
        eventually(lambda: small.metric("tome_inflight_requests") == 1)
        eventually(lambda: small.metric("tome_queue_jobs") == 0)
        results = httpx.post(
            f"{small.url}/classify", files=[("f", ("f", SNEAKER))] * 3, timeout=30
        ).json()["results"]
        assert [result.get("status", 200) for result in results] == [200] * 3

    def test_stop_comes_last_and_answers_what_was_accepted(self, small, eventually):
        held = [half_sent(small) for _ in range(2)]
        idle = small.connect()
        eventually(lambda: small.metric("tome_inflight_requests") == 3)
        small.process.terminate()
        eventually(lambda: httpx.get(f"{small.url}/readyz").status_code == 503)
        refused = httpx.post(f"{small.url}/classify", content=SNEAKER)
        assert assert_problem(refused, 503, "overloaded")["reason"] == "draining"
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{small.url}/healthz").status_code == 200
        responses = [finish(connection) for connection in held]
        assert [response.status_code for response in responses] == [200, 200]
        assert all(response.headers["connection"] == "close" for response in responses)
        assert small.process.wait(20) == 0
        idle.close()


@pytest.mark.parametrize("launched", [False, True])
def test_a_stop_while_starting_is_clean(start_server, eventually, launched):
    with start_server(wait=False) as server:
        if launched:
            eventually(server.engines)
        else:
            time.sleep(0.2)
        server.process.terminate()
        assert server.process.wait(20) in ((0,) if launched else (0, -signal.SIGTERM))


def test_a_slow_body_cannot_hold_the_stop_and_a_second_signal_does_not_wait(
    start_server, eventually, tmp_path
):
    with start_server(levels="0", max_batch=1, body_timeout=600, drain_timeout=10) as server:
        held = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        server.process.terminate()
        with held:
            response = read_response(held)
        assert_problem(response, 408, "slow-body")
        assert server.process.wait(20) == 0
    log = tmp_path / "stderr"
    patient = {"body_timeout": 600, "drain_timeout": 600}
    with (
        log.open("w") as stderr,
        start_server(stderr=stderr, levels="0", max_batch=1, **patient) as server,
    ):
        held = half_sent(server)
        eventually(lambda: server.metric("tome_inflight_requests") == 2)
        server.process.terminate()
        eventually(lambda: not server.ready())
        server.process.terminate()
        assert server.process.wait(20) == 1
        held.close()
    assert "1 requests were cut off" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_before_it_is_ready(start_server, eventually):
    with start_server(wait=False) as server:
        eventually(server.engines)
        server.signal_engine(signal.SIGSTOP)  # so that it does not get ready meanwhile
        eventually(lambda: is_listening(server))
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        for response in (
            httpx.get(f"{server.url}/readyz"),
            httpx.post(f"{server.url}/classify?r=x", content=SNEAKER),
        ):
            assert assert_problem(response, 503, "overloaded")["reason"] == "not-ready"
        assert_problem(httpx.get(f"{server.url}/models"), 503, "overloaded")
        server.signal_engine(signal.SIGCONT)
        server.process.terminate()
        assert server.process.wait(20) == 0


def test_an_address_in_use(server, start_server):
    with start_server(wait=False, port=server.port) as second:
        assert second.process.wait(30) == 1


def is_listening(server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", server.port)) == 0
