"""Requests are encoded as the specification says, and drawn by its seed."""

from __future__ import annotations

from itertools import islice

from tome_load.requests import draws, request_url
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

UPLOADS = (Upload("a", b"xyz"), Upload("b", b"xy" * 40_000))


def test_a_request_has_the_parameters_of_the_spec() -> None:
    spec = LoadSpec(
        "http://[::1]:81/behind/",
        UPLOADS,
        connections=1,
        requests=1,
        r=("16:-1", "3,1"),
        model="m",
        deadline_ms=250,
        key="secret",
        endpoint="embed",
    )
    url = request_url(spec, "3,1")
    assert url == "http://[::1]:81/behind/embed?r=3,1&model=m&deadline_ms=250"


def test_a_request_may_ask_for_second_passes() -> None:
    spec = LoadSpec("http://x", UPLOADS, connections=1, requests=1, confidence="auto")
    assert request_url(spec, "16") == "http://x/classify?r=16&confidence=auto"


def test_a_request_without_parameters_has_no_query() -> None:
    spec = LoadSpec("http://user:password@x", UPLOADS, connections=1, requests=1)
    assert request_url(spec, "") == "http://x/classify"


def test_the_same_seed_draws_the_same_requests() -> None:
    def first(seed: int) -> list[tuple[str, int]]:
        spec = LoadSpec("http://x", UPLOADS, rate=1, requests=1, r=("0", "8", "16"), seed=seed)
        return list(islice(draws(spec), 300))

    assert first(1) == first(1) != first(2)
    assert {r for r, _ in first(1)} == {"0", "8", "16"}
    assert {upload for _, upload in first(1)} == {0, 1}
