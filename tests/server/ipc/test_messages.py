"""Messages are the same after they were pickled and sent."""

from __future__ import annotations

import socket
from itertools import pairwise
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from server.ipc.channel import Channel
from server.ipc.messages import BatchDone, BatchFailure, Failure, Job, Outcome, SecondPass
from server.ipc.packing import Unpacker, pack
from server.latency.cost import CostFeatures, CostModel
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
    output_kind=st.sampled_from(["classes", "features", "source"]),
    normalised=st.booleans(),
    request_id=st.text(),
    second=st.none()
    | st.builds(
        SecondPass, schedule=SCHEDULES, shares=st.lists(st.floats(0, 1), max_size=6).map(tuple)
    ),
    is_second=st.booleans(),
    label_set=st.text(max_size=8),
)
OUTCOMES = st.builds(
    Outcome,
    id=NUMBERS,
    failure=st.none() | st.sampled_from(Failure),
    schedule=st.none() | SCHEDULES,
    scores=st.lists(st.floats(0, 1), max_size=5).map(tuple),
    classes=st.lists(st.integers(0, 999), max_size=5).map(tuple),
    tokens_out=NUMBERS,
    queue_seconds=SECONDS,
    features=st.binary(max_size=16),
    source=st.binary(max_size=16),
)


def sent_and_received(message: Message) -> Message:
    api_end, engine_end = socket.socketpair()
    with api_end, engine_end:
        api_end.sendall(pack(message))
        received: Message = Channel(engine_end).receive()
    assert type(received) is type(message)
    return received


@given(JOBS)
def test_a_job_is_the_same_after_sending(job: Job) -> None:
    received = sent_and_received(job)
    assert received == job
    assert all(isinstance(schedule, Schedule) for schedule in received.choices)


@given(JOBS)
def test_received_jobs_with_equal_schedules_share_them(job: Job) -> None:
    assert sent_and_received(job).choices is sent_and_received(job._replace(id=job.id + 1)).choices


@given(
    st.lists(OUTCOMES, max_size=4).map(tuple),
    st.none() | st.just(CostModel(CostFeatures(host=1.0))),
)
def test_a_batch_is_the_same_after_sending(
    outcomes: tuple[Outcome, ...], cost_model: CostModel | None
) -> None:
    batch = BatchDone("m", outcomes, 4, 788, 0.25, 0.2, 0.5, (BatchFailure.NAN,), cost_model)
    received = sent_and_received(batch)
    assert received == batch
    assert all(type(outcome) is Outcome for outcome in received.outcomes)


def test_a_pickled_job_is_small() -> None:
    job = Job(1, 1, "vit", (Schedule.constant(8),), 5, 1.0)
    assert len(pack(job)) < 100


@given(st.lists(JOBS | st.binary(max_size=300), max_size=6), st.data())
def test_messages_are_the_same_however_the_stream_is_split(
    messages: list[object], data: st.DataObject
) -> None:
    stream = b"".join(map(pack, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    unpacker = Unpacker()
    received = []
    for start, stop in pairwise([0, *cuts, len(stream)]):
        received += unpacker.messages(stream[start:stop])
    assert received == messages
