"""The trace that a request belongs to: W3C Trace Context, level 1 (w3.org/TR/trace-context-1).

The server calls no other, so it passes a trace on in its answer. It begins no trace of its own
unless spans are recorded (`spans.py`): then nobody would know one.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from starlette.datastructures import Headers

# Section 3.2.2. Versions above 00 may have more after the flags, section 3.2.4.
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_INVALID_VERSION = "ff"
_SAMPLED = 0x01

# Section 3.3.1.3.
_MAX_MEMBERS = 32
_KEY = r"[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13}"
_VALUE = r"[ -+\--<>-~]{0,255}[!-+\--<>-~]"
_MEMBER = re.compile(f"({_KEY})=({_VALUE})")


@dataclass(frozen=True)
class TraceContext:
    """A trace, and one operation in it: the caller's, or the handling of a request.

    Attributes:
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits; ``parent-id`` in the header of those who are called.
        sampled: whether the operation may have been recorded.
        state: the header ``tracestate``, if it is valid.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    def child(self) -> TraceContext:
        """Return the context of an operation that this one has caused."""
        return replace(self, span_id=f"{random.randrange(1, 2**64):016x}")

    def headers(self) -> dict[str, str]:
        """Return the headers ``traceparent`` and, if there is a state, ``tracestate``."""
        flags = _SAMPLED if self.sampled else 0
        found = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{flags:02x}"}
        if self.state:
            found["tracestate"] = self.state
        return found


def read_trace_context(headers: Headers) -> TraceContext | None:
    """Return the caller's operation; None if the headers name none, or not as they should."""
    values = headers.getlist("traceparent")
    match = _TRACEPARENT.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == _INVALID_VERSION or (version == "00" and rest):
        return None
    if int(trace_id, 16) == 0 or int(span_id, 16) == 0:
        return None
    state = _read_state(headers.getlist("tracestate"))
    return TraceContext(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state)


def _read_state(values: list[str]) -> str:
    """Return the list in all ``values``, as one; empty if a member is not valid."""
    members = [member.strip(" \t") for value in values for member in value.split(",")]
    members = [member for member in members if member]
    keys = set()
    for member in members:
        match = _MEMBER.fullmatch(member)
        if match is None:
            return ""
        keys.add(match[1])
    if len(members) > _MAX_MEMBERS or len(keys) < len(members):
        return ""
    return ",".join(members)
