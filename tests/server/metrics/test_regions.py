"""Entries of a region are seen whole by whoever reads it, or not at all."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from server.metrics.regions import Key, Region, entry_bytes

KEYS = st.lists(st.text(max_size=9), min_size=1, max_size=4).map(tuple)


VALUES = st.lists(st.floats(allow_nan=False), min_size=1, max_size=4)


@settings(max_examples=40)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_what_one_view_writes_another_reads(written: dict[Key, list[float]]) -> None:
    memory = memoryview(bytearray(10_000))
    writer, reader = Region(memory), Region(memory)
    for number, (key, numbers) in enumerate(written.items(), start=1):
        values = writer.append(key, len(numbers))
        assert values is not None
        assert values.tolist() == [0.0] * len(numbers)
        for index, value in enumerate(numbers):
            values[index] = value
        assert len(reader.entries()) == number  # also of a view that has read before
    for region in (reader, writer, Region(memory)):
        assert {key: values.tolist() for key, values in region.entries().items()} == written


def test_entries_are_aligned() -> None:
    memory = memoryview(bytearray(1000))
    region = Region(memory)
    assert region.append(("é", "odd"), 3) is not None
    used = memory[:8].cast("Q")[0]
    assert used % 8 == 0
    assert used == 8 + entry_bytes(("é", "odd"), 3)


def test_an_entry_without_room_changes_nothing() -> None:
    key = ("name", "label")
    memory = memoryview(bytearray(8 + entry_bytes(key, 2)))
    region = Region(memory)
    assert region.append(key, 3) is None
    assert region.append(key, 2, reserve=1) is None
    assert bytes(memory) == bytes(len(memory))
    assert region.append(key, 2) is not None
    assert region.append(("another",), 1) is None
    assert list(region.entries()) == [key]


def test_an_entry_appears_when_it_is_complete() -> None:
    """Whatever a killed writer has put behind the bytes in use, nobody reads it."""
    memory = memoryview(bytearray(1000))
    region = Region(memory)
    region.append(("first",), 1)
    before = bytes(memory[:8])
    region.append(("torn",), 2)
    memory[:8] = before  # as if killed before the last store
    successor = Region(memory)
    assert list(successor.entries()) == [("first",)]
    values = successor.append(("second",), 3)
    assert values is not None
    assert values.tolist() == [0.0] * 3
    assert list(Region(memory).entries()) == [("first",), ("second",)]
