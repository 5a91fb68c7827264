"""The loop on a real runner, from jobs on its channel to the reply."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from server.engine.execution.runner import Runner
from server.engine.loop import EngineModel, Loop
from server.engine.scheduling.calibration import Calibration, Sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.warmup import model_info
from server.ipc.channel import Channel, pack
from server.ipc.messages import BatchDone, Job, Stop
from server.ipc.shared_memory import HeartbeatPage, Slots, create_memory
from server.latency.queue_model import Bounds
from tome_core import Schedule


def run_jobs(runner: Runner, slots: Slots, jobs: Sequence[Job]) -> BatchDone:
    """Run the jobs of one model, which arrive together and are one batch."""
    name = jobs[0].model
    samples = [
        Sample((Schedule.constant(0),), 0.001),
        Sample(tuple(job.choices[0] for job in jobs), 0.001),
    ]
    calibration = Calibration(model_info(runner, ()).geometry, samples)
    api_socket, engine_socket = socket.socketpair()
    with api_socket, engine_socket:
        loop = Loop(
            Channel(engine_socket),
            Scheduler(Bounds(len(jobs), len(jobs)), 30.0, {name: calibration}),
            {name: EngineModel(runner, calibration)},
            slots,
            HeartbeatPage(create_memory("page", HeartbeatPage.SIZE)),
        )
        api_socket.sendall(b"".join(pack(message) for message in (*jobs, Stop())))
        loop.run()
        reply = Channel(api_socket).receive()
    assert isinstance(reply, BatchDone)
    return reply
