import os

import numpy as np

from server.slots import Slots, create_memory


def test_two_mappings_share_what_one_writes() -> None:
    memory = create_memory()
    writer = Slots(memory, count=3, slot_bytes=5000, create=True)
    reader = Slots(memory, count=3, slot_bytes=5000)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 20, 20), np.uint8)
    for slot, image in enumerate(images):
        np.copyto(writer.view(slot, (3, 20, 20)), image)
    assert (reader.gather([2, 0], (3, 20, 20)) == images[[2, 0]]).all()
    gathered = reader.gather([1], (3, 20, 20))
    writer.view(1, (3, 20, 20))[:] = 0
    assert (gathered[0] == images[1]).all()  # a copy: the slot may be given to another image meanwhile
    os.close(memory)


def test_slots_do_not_overlap() -> None:
    memory = create_memory()
    slots = Slots(memory, count=4, slot_bytes=4097, create=True)
    for slot in range(4):
        slots.view(slot, (4097,))[:] = slot + 1
    assert [int(slots.view(slot, (4097,)).min()) for slot in range(4)] == [1, 2, 3, 4]
    assert [int(slots.view(slot, (4097,)).max()) for slot in range(4)] == [1, 2, 3, 4]
    os.close(memory)
