"""What crosses between the processes is what was sent."""

from __future__ import annotations

import socket
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from server.ipc.channel import Channel, pack
from server.ipc.messages import BatchDone, Job, Outcome
from server.latency.cost import Estimate, Features
from tome_core.schedule import Schedule

Message = TypeVar("Message")

SCHEDULES = st.one_of(
    st.builds(Schedule.constant, st.integers(0, 98)),
    st.builds(Schedule.linear, st.integers(0, 98), st.floats(-1, 1)),
    st.builds(Schedule.per_layer, st.lists(st.integers(0, 98), max_size=12)),
)
NUMBERS = st.integers(0, 2**40)
SECONDS = st.floats(0, 1e9)
JOBS = st.builds(
    Job,
    id=NUMBERS,
    slot=NUMBERS,
    model=st.text(),
    choices=st.lists(SCHEDULES, min_size=1, max_size=6).map(tuple),
    top_k=st.integers(0, 1000),
    submitted=SECONDS,
    deadline=st.none() | SECONDS,
    want=st.sampled_from(["classes", "features", "source"]),
    normalised=st.booleans(),
)
OUTCOMES = st.builds(
    Outcome,
    id=NUMBERS,
    failure=st.sampled_from(["", "expired", "failed"]),
    schedule=st.none() | SCHEDULES,
    scores=st.lists(st.floats(0, 1), max_size=5).map(tuple),
    classes=st.lists(st.integers(0, 999), max_size=5).map(tuple),
    tokens_out=NUMBERS,
    queue_seconds=SECONDS,
    features=st.binary(max_size=16),
    source=st.binary(max_size=16),
)


def crossed(message: Message) -> Message:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pack(message))
        found: Message = Channel(theirs).receive()
    assert type(found) is type(message)
    return found


@given(JOBS)
def test_a_job_crosses_as_it_is(job: Job) -> None:
    found = crossed(job)
    assert found == job
    assert all(isinstance(one, Schedule) for one in found.choices)


@given(JOBS)
def test_choices_that_are_equal_are_the_same_after_crossing(job: Job) -> None:
    assert crossed(job).choices is crossed(job._replace(id=job.id + 1)).choices


@given(st.lists(OUTCOMES, max_size=4).map(tuple), st.none() | st.just(Estimate(Features(host=1.0))))
def test_a_batch_crosses_as_it_is(outcomes: tuple[Outcome, ...], estimate: Estimate | None) -> None:
    batch = BatchDone("m", outcomes, 4, 788, 0.25, 0.2, 0.5, ("nan",), estimate)
    found = crossed(batch)
    assert found == batch
    assert all(type(outcome) is Outcome for outcome in found.outcomes)


def test_what_crosses_is_small() -> None:
    job = Job(1, 1, "vit", (Schedule.constant(8),), 5, 1.0)
    assert len(pack(job)) < 100
