"""The headers of W3C Trace Context, level 1, as its test suite has them."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from server.api.middleware.requests import RequestMiddleware
from server.api.middleware.trace_context import TraceContext, read_trace_context
from server.metrics.api import Metrics
from tests.server.api.middleware.asgi import answer, http_scope, run
from tests.server.api.middleware.test_requests import access_line

TRACE = "12345678901234567890123456789012"
PARENT = "1234567890123456"
VALID = f"00-{TRACE}-{PARENT}-01"
MOST_MEMBERS = ",".join(f"k{number}=1" for number in range(32))


def read(*pairs: tuple[str, str]) -> TraceContext | None:
    return read_trace_context(Headers(raw=[(key.encode(), value.encode()) for key, value in pairs]))


def test_a_valid_header_is_read_and_written_alike() -> None:
    context = read(("traceparent", VALID), ("tracestate", "foo=1"))
    assert context == TraceContext(TRACE, PARENT, sampled=True, state="foo=1")
    assert context.headers() == {"traceparent": VALID, "tracestate": "foo=1"}


@pytest.mark.parametrize(
    ("flags", "written"), [("00", "00"), ("01", "01"), ("02", "00"), ("ff", "01")]
)
def test_of_the_flags_only_sampled_is_known(flags: str, written: str) -> None:
    context = read(("traceparent", f"00-{TRACE}-{PARENT}-{flags}"))
    assert context is not None
    assert context.headers()["traceparent"].endswith(f"-{written}")


@pytest.mark.parametrize("rest", ["", "-", "-what-the-future-will-be-like"])
def test_a_later_version_is_read_as_far_as_it_is_known(rest: str) -> None:
    context = read(("traceparent", f"cc-{TRACE}-{PARENT}-01{rest}"))
    assert context == TraceContext(TRACE, PARENT, sampled=True)


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        VALID[:-1],
        VALID + "-",
        VALID + ".",
        VALID + "-what-the-future-will-not-be-like",
        f"ff-{TRACE}-{PARENT}-01",
        f"cc-{TRACE}-{PARENT}-01.what",
        f"0-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{PARENT}-0x",
        f"00-{TRACE[:-1]}.-{PARENT}-01",
        f"00-{TRACE.replace('1', 'A')}-{PARENT}-01",
        f"00-{TRACE}{PARENT}-01",
        f"{VALID},{VALID}",
    ],
)
def test_a_malformed_header_is_as_none_whatever_the_state(malformed: str) -> None:
    assert read(("traceparent", malformed), ("tracestate", "foo=1")) is None


def test_without_or_with_two_headers_there_is_no_trace() -> None:
    assert read(("tracestate", "foo=1")) is None
    assert read(("traceparent", VALID), ("traceparent", VALID)) is None


@pytest.mark.parametrize(
    ("values", "state"),
    [
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1 \t , \t bar=2, "], "foo=1,bar=2"),
        (["foo=1,,bar=2", ""], "foo=1,bar=2"),
        (["foo@bar=1,0a@b=2,z*/-_0=3"], "foo@bar=1,0a@b=2,z*/-_0=3"),
        (["foo=bar baz"], "foo=bar baz"),
        ([f"{'z' * 256}={'v' * 256}"], f"{'z' * 256}={'v' * 256}"),
        ([MOST_MEMBERS], MOST_MEMBERS),
    ],
)
def test_a_valid_state_is_passed_on(values: list[str], state: str) -> None:
    context = read(("traceparent", VALID), *(("tracestate", value) for value in values))
    assert context is not None
    assert context.state == state


@pytest.mark.parametrize(
    "state",
    [
        "foo",
        "foo=",
        "=1",
        "foo =1",
        "FOO=1",
        "foo.bar=1",
        "foo=bar=baz",
        "foo@=1,bar=2",
        "foo@@bar=1",
        "foo=1,foo=2",
        f"{'z' * 257}=1",
        f"{'t' * 242}@v=1",
        f"t@{'v' * 15}=1",
        f"foo={'v' * 257}",
        f"{MOST_MEMBERS},k32=1",
    ],
)
def test_an_invalid_state_is_dropped_and_the_trace_is_kept(state: str) -> None:
    assert read(("traceparent", VALID), ("tracestate", state)) == TraceContext(TRACE, PARENT, True)


@given(st.text(st.characters(max_codepoint=0x7E, min_codepoint=0x20)))
def test_any_text_in_place_of_a_trace_is_as_none(text: str) -> None:
    assert read(("traceparent", text)) is None


@given(st.text() | st.text("ab1@=,;- \t"))
def test_any_text_is_dropped_or_is_a_valid_state(text: str) -> None:
    context = read(("traceparent", VALID), ("tracestate", text))
    assert context is not None
    assert context.trace_id == TRACE
    assert read(*context.headers().items()) == context


def test_the_answer_and_the_log_name_the_trace_and_an_operation_of_their_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    scope = http_scope(headers={"traceparent": VALID, "tracestate": "foo=1"})
    with caplog.at_level(logging.INFO, "tome.access"):
        exchange = run(RequestMiddleware(answer(200), Metrics()), scope)
    own = read_trace_context(exchange.headers)
    assert own is not None
    assert (own.trace_id, own.sampled, own.state) == (TRACE, True, "foo=1")
    assert own.span_id != PARENT
    line = access_line(caplog)
    assert vars(line)["trace_id"] == TRACE
    assert vars(line)["span_id"] == own.span_id


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-x", "tracestate": "foo=1"}])
def test_outside_a_trace_the_answer_names_none(headers: dict[str, str]) -> None:
    exchange = run(RequestMiddleware(answer(200), Metrics()), http_scope(headers=headers))
    assert not {"traceparent", "tracestate"} & set(exchange.headers)
