"""A region of the metrics' memory: entries of one writing process, which every process reads.

A region begins with the number of its bytes in use. Entries follow, each of them:

* two numbers of 4 bytes: the bytes of its key, and the number of its values,
* the key in JSON, a list of the metric's name and the values of its labels, filled up to 8 bytes,
* the values, float64.

Entries are appended and stay. The bytes in use are raised when an entry is complete, so a writer
that is killed leaves no part of one. Every value is an aligned 8-byte number with a single writer,
so that a reader never sees a value that is written in part.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import TypeAlias

Key: TypeAlias = tuple[str, ...]  # the name of a metric, then the values of its labels
Values: TypeAlias = "memoryview[float]"

_WORD = 8
_ENTRY = struct.Struct("=II")


def entry_bytes(key: Key, count: int) -> int:
    """Return the bytes of an entry of ``count`` values."""
    return _ENTRY.size + _round_up(len(_pack(key))) + count * _WORD


class Region:
    """One process's view of a region.

    One process writes a region at a time. Another one that continues after its end sees the entries
    of its predecessor, and goes on from their values.

    Args:
        memory: the bytes of the region, all zero before its first use.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._used = memory[:_WORD].cast("Q")
        self._end = _WORD  # of the last entry in `_entries`
        self._entries: dict[Key, Values] = {}

    def entries(self) -> Mapping[Key, Values]:
        """Return the values of all complete entries, in the order in which they were appended."""
        used = self._used[0]
        end = self._end
        while end < used:
            key_bytes, count = _ENTRY.unpack_from(self._memory, end)
            start = end + _ENTRY.size
            key = tuple(json.loads(bytes(self._memory[start : start + key_bytes])))
            start += _round_up(key_bytes)
            end = start + count * _WORD
            self._entries[key] = self._memory[start:end].cast("d")
        self._end = end
        return self._entries

    def append(self, key: Key, count: int, reserve: int = 0) -> Values | None:
        """Append an entry of ``count`` zeros, and return its values; None if there is no room.

        Args:
            key: of no entry yet.
            reserve: bytes to leave unused.
        """
        start = self._used[0] or _WORD
        end = start + entry_bytes(key, count)
        if end > len(self._memory) - reserve:
            return None
        packed = _pack(key)
        values = self._memory[end - count * _WORD : end].cast("d")
        _ENTRY.pack_into(self._memory, start, len(packed), count)
        start += _ENTRY.size
        self._memory[start : start + len(packed)] = packed
        self._used[0] = end
        return values


def _pack(key: Key) -> bytes:
    return json.dumps(key).encode()


def _round_up(size: int) -> int:
    return -(-size // _WORD) * _WORD
