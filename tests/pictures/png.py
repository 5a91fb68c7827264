"""Write and read PNG files of every kind, without any library but zlib.

Source: PNG specification, third edition. Samples are ``uint16 (H, W, C)``.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tests.hostile.build import ADAM7, ONE_PASS, PNG, chunk, header

GREY = 0
RGB = 2
PALETTE = 3
GREY_ALPHA = 4
RGB_ALPHA = 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}

Samples = npt.NDArray[np.uint16]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Png:
    """What a file says: samples, palette ``uint8 (N, 3)`` and the content of ``tRNS``."""

    samples: Samples
    depth: int
    color: int
    palette: Bytes | None = None
    transparency: bytes = b""
    interlaced: bool = False


def write_png(image: Png, filters: list[int], extra: bytes = b"") -> bytes:
    """Return a file of ``image``, whose rows have ``filters`` in turn, with ``extra`` chunks."""
    height, width = image.samples.shape[:2]
    chunks = [header(width, height, image.depth, image.color, int(image.interlaced)), extra]
    if image.palette is not None:
        chunks.append(chunk(b"PLTE", image.palette.tobytes()))
    if image.transparency:
        chunks.append(chunk(b"tRNS", image.transparency))
    rows = []
    for top, left, down, across in ADAM7 if image.interlaced else ONE_PASS:
        part = image.samples[top::down, left::across]
        if part.size:
            rows += _filtered(part, image.depth, filters)
    chunks += [chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND")]
    return PNG + b"".join(chunks)


def _filtered(part: Samples, depth: int, filters: list[int]) -> list[bytes]:
    step = _bytes_per_pixel(part.shape[2], depth)
    rows = []
    above = np.zeros(len(_packed(part[0], depth)), np.uint8)
    for index, samples in enumerate(part):
        row = np.frombuffer(_packed(samples, depth), np.uint8)
        method = filters[index % len(filters)]
        rows.append(bytes([method]) + (row - _predicted(row, above, method, step)).tobytes())
        above = row
    return rows


def _packed(samples: Samples, depth: int) -> bytes:
    flat = samples.reshape(-1)
    bits = flat[:, None] >> np.arange(depth)[::-1] & 1
    return np.packbits(bits.astype(np.uint8)).tobytes()


def _bytes_per_pixel(channels: int, depth: int) -> int:
    return max(channels * depth // 8, 1)


def _predicted(row: Bytes, above: Bytes, method: int, step: int) -> Bytes:
    """What a filter subtracts from ``row`` (section 9.2), which must be decoded already."""
    left = np.zeros_like(row)
    corner = np.zeros_like(row)
    left[step:] = row[:-step] if step < len(row) else 0
    corner[step:] = above[:-step] if step < len(row) else 0
    wide_left = left.astype(int)
    wide_above = above.astype(int)
    if method == 0:
        return np.zeros_like(row)
    if method == 1:
        return left
    if method == 2:
        return above
    if method == 3:
        return ((wide_left + wide_above) // 2).astype(np.uint8)
    estimate = wide_left + wide_above - corner
    candidates = np.stack([wide_left, wide_above, corner.astype(int)])
    nearest = np.abs(candidates - estimate).argmin(axis=0)
    return np.take_along_axis(candidates, nearest[None], 0)[0].astype(np.uint8)


def read_png(body: bytes) -> Png:
    """Return what a file says, of its first picture."""
    chunks = dict(_chunks(body))
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    data = zlib.decompress(b"".join(data for name, data in _chunks(body) if name == b"IDAT"))
    channels = CHANNELS[color]
    samples = np.zeros((height, width, channels), np.uint16)
    position = 0
    for top, left, down, across in ADAM7 if interlaced else ONE_PASS:
        part = samples[top::down, left::across]
        if part.size:
            row_bytes = -(-part.shape[1] * channels * depth // 8)
            end = position + part.shape[0] * (row_bytes + 1)
            rows = np.frombuffer(data[position:end], np.uint8).reshape(-1, row_bytes + 1)
            samples[top::down, left::across] = _unfiltered(rows, part.shape, depth)
            position = end
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3) if color == PALETTE else None
    return Png(samples, depth, color, palette, chunks.get(b"tRNS", b""), bool(interlaced))


def _chunks(body: bytes) -> list[tuple[bytes, bytes]]:
    found = []
    start = len(PNG)
    while start < len(body):
        (length,) = struct.unpack_from(">I", body, start)
        data_start = start + 8
        found.append((body[start + 4 : data_start], body[data_start : data_start + length]))
        start = data_start + length + 4
    return found


def _unfiltered(rows: Bytes, shape: tuple[int, ...], depth: int) -> Samples:
    step = _bytes_per_pixel(shape[2], depth)
    above = np.zeros(rows.shape[1] - 1, np.uint8)
    decoded = []
    for method, *filtered in rows.tolist():
        row = np.array(filtered, np.uint8)
        # Each byte needs those to its left, so this goes pixel by pixel.
        for start in range(0, len(row), step):
            end = start + step
            row[start:end] += _predicted(row[:end], above[:end], method, step)[start:end]
        decoded.append(row)
        above = row
    bits = np.unpackbits(np.stack(decoded), axis=1)[:, : shape[1] * shape[2] * depth]
    weights = 1 << np.arange(depth)[::-1]
    return (bits.reshape(*shape, depth) @ weights).astype(np.uint16)


def rgba(image: Png) -> Bytes:
    """Return ``uint8 (H, W, 4)``: 16 bits of grey are rounded, of others the upper 8 are kept."""
    key = np.frombuffer(image.transparency, ">u2") if image.color in (GREY, RGB) else np.array([])
    mask = (1 << image.depth) - 1
    opaque = np.full(image.samples.shape[:2], 255, np.uint8)
    if key.size:
        opaque[(image.samples == (key & mask)).all(axis=-1)] = 0
    if image.color == PALETTE:
        return _palette_rgba(image)
    samples = _eight_bits(image)
    grey = image.color in (GREY, GREY_ALPHA)
    colours = samples[..., :1].repeat(3, axis=-1) if grey else samples[..., :3]
    alpha = samples[..., -1] if image.color in (GREY_ALPHA, RGB_ALPHA) else opaque
    return np.dstack([colours, alpha])


def _eight_bits(image: Png) -> Bytes:
    if image.depth == 16 and image.color == GREY:
        return np.floor(image.samples / 257 + 0.5).astype(np.uint8)
    if image.depth == 16:
        return (image.samples >> 8).astype(np.uint8)
    return (image.samples * (255 // ((1 << image.depth) - 1))).astype(np.uint8)


def _palette_rgba(image: Png) -> Bytes:
    assert image.palette is not None
    entries = np.full((256, 4), 255, np.uint8)
    entries[: len(image.palette), :3] = image.palette
    alpha = np.frombuffer(image.transparency, np.uint8)
    entries[: len(alpha), 3] = alpha
    return entries[image.samples[..., 0]]
