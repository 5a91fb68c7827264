"""The heartbeat page in two mappings of the same memory."""

import os

from server.ipc.heartbeat import Heartbeat, HeartbeatPage
from server.ipc.shared_memory import create_memory


def test_the_api_reads_the_state_that_the_engine_writes() -> None:
    descriptor = create_memory("test", HeartbeatPage.SIZE)
    engine = HeartbeatPage(descriptor)
    api = HeartbeatPage(descriptor)
    os.close(descriptor)
    assert api.read() == Heartbeat()
    engine.beat(12.5, 1 << 40)
    assert api.read() == Heartbeat(beat=12.5, resident_bytes=1 << 40)
    engine.begin_batch(13.25, 0.5)
    assert api.read() == Heartbeat(12.5, 13.25, predicted_seconds=0.5, resident_bytes=1 << 40)
    engine.end_batch()
    assert api.read().batch_started == 0
    engine.set_batch_limit(4)
    assert api.read().batch_limit == 4
