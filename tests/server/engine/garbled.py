"""An engine process without a model that sends what is no answer; tests run it in place of one."""

from __future__ import annotations

import socket
import sys

from server.engine.heartbeat import ParentWatch, start_heartbeat
from server.ipc.board import Board
from server.ipc.channel import Channel
from server.ipc.engine_config import EngineConfig
from server.ipc.messages import BatchDone, Cancel, Job, ModelInfo, Outcome, Ready, Stop
from server.ipc.packing import WithDescriptor, pack
from server.latency.cost import CostFeatures, CostModel
from server.media.transforms import ImageTransform
from tome_core.cost import Cost

EARLY = "early"  # the name of a model with which not even the start succeeds
OTHER_TYPE, NO_PICKLE, OTHER_JOB = range(3)
# What the log says, by the r of the job.
ERRORS = {
    OTHER_TYPE: "engine 0: Cancel was received, not BatchDone",
    NO_PICKLE: "engine 0: a message of 3 bytes cannot be read",
    OTHER_JOB: "engine 0: the engine answered job -1",
}
MODEL = ModelInfo(
    name="tiny",
    architecture="vit",
    transform=ImageTransform((3, 32, 32), "bilinear", 1.0, "center"),
    labels=(),
    tokens=17,
    prefix=1,
    depth=0,
    device="cpu",
    dtype="float32",
    levels=(),
    grid=(4, 4),
    cost=Cost(1, ()),
)


def main(control: socket.socket, board: int) -> None:
    """Start, and answer one job."""
    channel = Channel(control, descriptors=True)
    config: EngineConfig = channel.receive()
    row = Board(board, config.board).engines[config.engine]
    start_heartbeat(row, ParentWatch(control.fileno()))
    if any(spec.name == EARLY for spec in config.specs):
        return channel.send(Stop())
    channel.send(Ready((MODEL,), 3 * 32 * 32, {"tiny": CostModel(CostFeatures())}))
    channel.receive()  # the slots
    attached: WithDescriptor = channel.receive()
    connection = attached.connection
    job = Channel(connection).receive()
    if not isinstance(job, Job):
        return None
    answers = {
        OTHER_TYPE: pack(Cancel(job.id)),
        NO_PICKLE: b"\0\0\0\3abc",
        OTHER_JOB: pack(BatchDone("tiny", (Outcome(-1),))),
    }
    connection.sendall(answers[int(str(job.choices[0]))])
    while True:
        channel.receive()  # until the parent process ends this one


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[3]))
