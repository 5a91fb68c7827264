"""Requests are encoded as the specification says, and drawn by its seed."""

from __future__ import annotations

from itertools import islice

from tome_load.pictures import Picture
from tome_load.requests import Requests, draws
from tome_load.spec import LoadSpec

PICTURES = (Picture("a", b"xyz"), Picture("b", b"xy" * 40_000))


def test_a_request_has_the_parameters_of_the_spec() -> None:
    spec = LoadSpec(
        "http://[::1]:80/behind/",
        PICTURES,
        connections=1,
        requests=1,
        r=("16:-1", "3,1"),
        model="m",
        deadline_ms=250,
        key="secret",
        endpoint="embed",
    )
    head, body = Requests(spec).bytes_of("3,1", 1)
    request_line, host, *fields = head.split(b"\r\n")
    assert request_line == b"POST /behind/embed?r=3,1&model=m&deadline_ms=250 HTTP/1.1"
    assert host == b"Host: [::1]:80"
    assert b"Content-Length: 80000" in fields
    assert b"Authorization: Bearer secret" in fields
    assert fields[-2:] == [b"", b""]
    assert body is PICTURES[1].content


def test_a_request_without_parameters_has_no_query() -> None:
    spec = LoadSpec("http://user:password@x", PICTURES, connections=1, requests=1)
    head, _ = Requests(spec).bytes_of("", 0)
    assert head.startswith(b"POST /classify HTTP/1.1\r\nHost: x\r\n")
    assert b"Authorization" not in head


def test_the_same_seed_draws_the_same_requests() -> None:
    def first(seed: int) -> list[tuple[str, int]]:
        spec = LoadSpec("http://x", PICTURES, rate=1, requests=1, r=("0", "8", "16"), seed=seed)
        return list(islice(draws(spec), 300))

    assert first(1) == first(1) != first(2)
    assert {r for r, _ in first(1)} == {"0", "8", "16"}
    assert {picture for _, picture in first(1)} == {0, 1}
