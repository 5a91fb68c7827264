import os

from server.ipc.heartbeat import Heartbeat, HeartbeatPage
from server.ipc.shared_memory import create_memory


def test_one_mapping_reads_what_the_other_writes() -> None:
    descriptor = create_memory("test", HeartbeatPage.SIZE)
    engine = HeartbeatPage(descriptor)
    api = HeartbeatPage(descriptor)
    os.close(descriptor)
    assert api.read() == Heartbeat()
    engine.beat(12.5, 1 << 40)
    assert api.read() == Heartbeat(beat=12.5, resident=1 << 40)
    engine.begin(13.25, 0.5)
    assert api.read() == Heartbeat(12.5, 13.25, 0.5, 1 << 40)
    engine.end()
    assert api.read().began == 0
    engine.set_batch_limit(4)
    assert api.read().batch_limit == 4
