"""The parts of a body are collected in order and counted."""

import pytest

from server.errors import TooLarge
from server.imaging.container import PartCollector, read_number


def test_kept_parts_are_joined_in_order() -> None:
    parts = PartCollector(b"abcdef")
    parts.keep(0, 2)
    parts.keep(4)
    assert parts.join() == b"abef"


def test_a_larger_body_may_have_more_parts() -> None:
    for size, allowed in ((0, 5000), (5120, 5010)):
        parts = PartCollector(bytes(size))
        for _ in range(allowed):
            parts.count()
        with pytest.raises(TooLarge):
            parts.count()


def test_a_number_is_read_in_either_byte_order() -> None:
    assert read_number(b"\0\1\2", 1, 2) == 0x0102
    assert read_number(b"\0\1\2", 1, 2, "little") == 0x0201


def test_a_number_beyond_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        read_number(b"\0\1\2", 2, 2)
