import os

from server.pulse import Pulse, PulsePage
from server.slots import create_memory


def test_one_mapping_reads_what_the_other_writes() -> None:
    descriptor = create_memory("test", PulsePage.SIZE)
    engine, api = PulsePage(descriptor), PulsePage(descriptor)
    os.close(descriptor)
    assert api.read() == Pulse()
    engine.beat(12.5, 1 << 40)
    assert api.read() == Pulse(beat=12.5, resident=1 << 40)
    engine.begin(13.25, 0.5)
    assert api.read() == Pulse(12.5, 13.25, 0.5, 1 << 40)
    engine.end()
    assert api.read().began == 0
    engine.set_batch_limit(4)
    assert api.read().batch_limit == 4
