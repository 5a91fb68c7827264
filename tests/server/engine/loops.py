"""The loop on a real runner, from jobs on a client's channel to the reply."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from server.engine.clients import Clients
from server.engine.execution.runner import Runner
from server.engine.loop import EngineModel, Loop
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import model_info
from server.ipc.board import Board, BoardSize, EngineRow
from server.ipc.channel import Channel
from server.ipc.control import Attach
from server.ipc.messages import BatchDone, Job, Stop
from server.ipc.packing import pack
from server.ipc.shared_memory import Slots
from server.latency.queue_model import Bounds
from tome_core import Schedule


@dataclass
class Parent:
    """The parent process of an engine, in small.

    Attributes:
        control: its end of the control channel.
        channel: the same, to receive from.
    """

    control: socket.socket
    channel: Channel

    def attach(self, worker: int, *, small_buffer: bool = False) -> socket.socket:
        """Give the engine a client, and return the client's end of the channel.

        Args:
            small_buffer: whether the kernel keeps few of the bytes that the client does not read.
        """
        api_end, engine_end = socket.socketpair()
        if small_buffer:
            engine_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with engine_end:
            data = pack(Attach(worker), has_descriptor=True)
            socket.send_fds(self.control, [data], [engine_end.fileno()])
        return api_end

    def send(self, message: object) -> None:
        self.control.sendall(pack(message))


@contextmanager
def parent_and_engine() -> Iterator[tuple[Parent, Channel]]:
    """A parent, and the engine's end of its control channel."""
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end:
        yield Parent(parent_end, Channel(parent_end)), Channel(engine_end, descriptors=True)


def engine_row() -> EngineRow:
    """The row of one engine, on a board of its own."""
    return Board.create(BoardSize(engines=1, workers=1, slots=1)).engines[0]


def ignore(batch: BatchDone) -> None:
    """Count nothing."""


def make_loop(
    control: Channel,
    scheduler: Scheduler,
    models: Mapping[str, EngineModel],
    slots: Slots,
) -> Loop:
    """The loop of an engine, as its process makes it."""
    clients = Clients(control, scheduler)
    return Loop(clients, scheduler, models, slots, engine_row(), ignore)


def run_jobs(runner: Runner, slots: Slots, jobs: Sequence[Job]) -> BatchDone:
    """Run the jobs of one model, which arrive together and are one batch."""
    name = jobs[0].model
    samples = [
        Sample((Schedule.constant(0),), 0.001),
        Sample(tuple(job.choices[0] for job in jobs), 0.001),
    ]
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    with parent_and_engine() as (parent, control), parent.attach(0) as api:
        scheduler = Scheduler(Bounds(len(jobs), len(jobs)), 30.0, {name: calibration})
        loop = make_loop(control, scheduler, {name: EngineModel(runner, calibration)}, slots)
        api.sendall(b"".join(map(pack, jobs)))
        parent.send(Stop())
        loop.run()
        return next_reply(Channel(api))


def next_reply(channel: Channel) -> BatchDone:
    """The next reply with outcomes; others only tell of cost models."""
    while True:
        reply = channel.receive()
        assert isinstance(reply, BatchDone)
        if reply.outcomes:
            return reply
