"""The frame sizes that an AV1 bitstream declares (AV1 specification, version 1.0.0, errata 1)."""

from __future__ import annotations

from server.imaging.container import PartCollector, read_number

_SEQUENCE_HEADER = 1
_FRAME_HEADER = 3
_FRAME = 6
_FRAMES = (_FRAME_HEADER, _FRAME)

# The header of an OBU (section 5.3.2).
_TYPE_SHIFT = 3
_TYPE_MASK = 0x0F
_HAS_EXTENSION = 0x04
_HAS_SIZE = 0x02

_LEB128_BYTES = 8
_LEB128_GOES_ON = 0x80

_HIGHEST_LEVEL_WITHOUT_TIER = 7


def coded_sizes(data: bytes, parts: PartCollector) -> list[tuple[int, int]]:
    """Return ``(width, height)`` of each frame of a bitstream, as large as its frame may be.

    Raises:
        IndexError: ``data`` is truncated, or has a frame before its first sequence header.
        TooLarge: it has too many parts.
    """
    sizes: list[tuple[int, int]] = []
    size = None
    start = 0
    while start < len(data):
        parts.count()
        header = data[start]
        obu_type = header >> _TYPE_SHIFT & _TYPE_MASK
        start += 2 if header & _HAS_EXTENSION else 1
        length = len(data) - start
        if header & _HAS_SIZE:
            length, start = _read_leb128(data, start)
        if obu_type == _SEQUENCE_HEADER:
            size = _largest_frame(data[start : start + length])
        if obu_type in _FRAMES:
            if size is None:
                raise IndexError
            sizes.append(size)
        start += length
    return sizes


def _read_leb128(data: bytes, start: int) -> tuple[int, int]:
    """Return the number at ``start`` (section 4.10.5), and where it ends."""
    value = 0
    for index in range(_LEB128_BYTES):
        byte = read_number(data, start + index, 1)
        value |= (byte & ~_LEB128_GOES_ON) << 7 * index
        if not byte & _LEB128_GOES_ON:
            return value, start + index + 1
    raise IndexError


class _Bits:
    """Reads numbers of any number of bits, the highest first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """Return the next ``count`` bits. Raises `IndexError` if there are fewer."""
        self._left -= count
        if self._left < 0:
            raise IndexError
        mask = (1 << count) - 1
        return self._value >> self._left & mask

    def read_variable(self) -> int:
        """Return the next number in ``uvlc`` (section 4.10.3)."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


# No sequence header is longer, and the numbers that `_Bits` shifts stay small.
_MAX_SEQUENCE_HEADER_BYTES = 1000


def _largest_frame(data: bytes) -> tuple[int, int]:
    """Return the largest ``(width, height)`` of a frame after this sequence header (5.5.1)."""
    bits = _Bits(data[:_MAX_SEQUENCE_HEADER_BYTES])
    bits.read(3)  # profile
    bits.read(1)  # still picture
    is_reduced = bits.read(1)
    if is_reduced:
        bits.read(5)  # level
    else:
        _skip_operating_points(bits)
    width_bits = bits.read(4) + 1
    height_bits = bits.read(4) + 1
    width = bits.read(width_bits) + 1
    height = bits.read(height_bits) + 1
    if not is_reduced:
        # A frame's header may replace the size by any of so many bits.
        return 1 << width_bits, 1 << height_bits
    return width, height


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    has_timing = bits.read(1)
    if has_timing:
        delay_bits = _skip_timing(bits)
    has_display_delay = bits.read(1)
    points = bits.read(5) + 1
    for _ in range(points):
        bits.read(12)  # layers
        level = bits.read(5)
        if level > _HIGHEST_LEVEL_WITHOUT_TIER:
            bits.read(1)  # tier
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)


def _skip_timing(bits: _Bits) -> int:
    """Skip timing and decoder model; return the bits of a delay, 0 without a model."""
    bits.read(2 * 32)  # units in a tick, time scale
    has_equal_intervals = bits.read(1)
    if has_equal_intervals:
        bits.read_variable()
    has_decoder_model = bits.read(1)
    if not has_decoder_model:
        return 0
    delay_bits = bits.read(5) + 1
    bits.read(32 + 5 + 5)
    return delay_bits
