"""Slots in two mappings of the same memory."""

import mmap
import os
import sys

import numpy as np

from server.ipc.shared_memory import (
    SlotRegions,
    Slots,
    create_memory,
    describe_slots,
    largest_input_bytes,
    size_slots,
)


def test_an_image_written_in_one_mapping_is_read_in_the_other() -> None:
    memory = create_memory()
    size_slots(memory, count=3, slot_bytes=5000)
    writer = Slots(memory, count=3, slot_bytes=5000)
    reader = Slots(memory, count=3, slot_bytes=5000)
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 20, 20), np.uint8)
    for slot, image in enumerate(images):
        np.copyto(writer.view(slot, (3, 20, 20), np.uint8), image)
    for slot, image in enumerate(images):
        assert (reader.view(slot, (3, 20, 20), np.uint8) == image).all()
    os.close(memory)


def test_a_slot_can_hold_float32() -> None:
    memory = create_memory()
    size_slots(memory, count=3, slot_bytes=4 * 3 * 20 * 20)
    slots = Slots(memory, count=3, slot_bytes=4 * 3 * 20 * 20)
    values = np.random.default_rng(0).standard_normal((3, 20, 20)).astype(np.float32)
    np.copyto(slots.view(1, values.shape, np.float32), values)
    np.testing.assert_array_equal(slots.view(1, values.shape, np.float32), values)
    assert not slots.view(0, values.shape, np.float32).any()
    os.close(memory)


def test_slots_do_not_overlap() -> None:
    memory = create_memory()
    size_slots(memory, count=4, slot_bytes=4097)
    slots = Slots(memory, count=4, slot_bytes=4097)
    for slot in range(4):
        slots.view(slot, (4097,), np.uint8)[:] = slot + 1
    assert [int(slots.view(slot, (4097,), np.uint8).min()) for slot in range(4)] == [1, 2, 3, 4]
    assert [int(slots.view(slot, (4097,), np.uint8).max()) for slot in range(4)] == [1, 2, 3, 4]
    os.close(memory)


def test_slots_hold_the_largest_input_of_any_model_as_float32() -> None:
    assert largest_input_bytes([(3, 32, 32)]) == 3 * 32 * 32 * 4
    clips = (3, 16 * 224, 224)
    assert largest_input_bytes([(3, 32, 32), clips, (1, 1024, 128)]) == 16 * 3 * 224 * 224 * 4


def test_the_memory_of_slots_is_described_as_it_is_mapped() -> None:
    memory = create_memory()
    size_slots(memory, 3, 5000)
    slots = Slots(memory, 3, 5000)
    assert slots.array.nbytes == os.fstat(memory).st_size
    assert describe_slots(3, 5000) == f"slots: 3 of {slots.array.shape[1]:,} bytes, 0 MB at most"
    assert describe_slots(256, 9_633_792) == "slots: 256 of 9,633,792 bytes, 2,466 MB at most"
    os.close(memory)


def test_larger_slots_get_memory_of_their_own_and_that_of_before_goes_back() -> None:
    count = 3
    descriptor = create_memory()
    try:
        regions = SlotRegions(descriptor, count)
        small = regions.fit(100)
        assert regions.fit(50) == small
        large = regions.fit(mmap.PAGESIZE + 1)
        assert large.offset == count * mmap.PAGESIZE
        before = Slots(descriptor, count, small.slot_bytes, small.offset)
        after = Slots(descriptor, count, large.slot_bytes, large.offset)
        before.array[:] = 1
        after.array[:] = 2
        assert before.array.max() == 1
        used = os.fstat(descriptor).st_blocks
        regions.free(large)  # the latest one stays
        assert os.fstat(descriptor).st_blocks == used
        regions.free(small)
        if sys.platform == "linux":
            assert os.fstat(descriptor).st_blocks < used
        assert after.array.min() == 2
    finally:
        os.close(descriptor)
