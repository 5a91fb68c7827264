"""Results by image, and how a file keeps them."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from research.kept_rows import About, read_rows, write_rows

# Losses are kept as float16, whose 11 bits of precision begin to fade below 6e-5; times this number
# they fade below 6e-8. The largest is 63.
_SCALE = 1024
_LARGEST = 63.0

# Per image, by their attributes; lower is better.
LOSSES = ("class_loss", "patch_loss", "divergence")
FLAGS = ("agrees", "correct")


class Mean(NamedTuple):
    """A mean over images and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Result:
    """One row over all images; arrays are ``(M,)``.

    Attributes:
        class_loss: 1 - cosine of the class token with that at r=0, after the final norm.
        patch_loss: the mean of the same over all patches, unmerged.
        divergence: Kullback-Leibler, of the probabilities at r=0 from these; NaN without classes.
        agrees: whether the class is that at r=0.
        correct: whether it is the true one.
        schedule: its text form.
        tokens: left after the last block.
        relative_flops: of what an image costs without merging.
        seconds: the run took.
    """

    class_loss: npt.NDArray[np.float64]
    patch_loss: npt.NDArray[np.float64]
    divergence: npt.NDArray[np.float64]
    agrees: npt.NDArray[np.bool_]
    correct: npt.NDArray[np.bool_]
    schedule: str
    tokens: int
    relative_flops: float
    seconds: float

    def mean(self, what: str) -> Mean:
        """Return the mean of one of `LOSSES`, or of `FLAGS` in percent."""
        values = getattr(self, what).astype(np.float64)
        return _mean(100 * values if what in FLAGS else values)


def ratio(a: Result, b: Result, what: str) -> Mean:
    """Return the mean of ``a`` divided by that of ``b``, and its standard error.

    Both saw the same images, so the error is that of the differences image by image, in units of
    ``b``'s mean.
    """
    mine = getattr(a, what)
    other = getattr(b, what)
    base = float(other.mean())
    if base == 0:
        return Mean(math.nan, math.nan)
    difference = _mean(mine - other)
    return Mean(1 + difference.value / base, difference.error / base)


def _mean(values: npt.NDArray[np.float64]) -> Mean:
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Mean(float(values.mean()), error)


def rounded(losses: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return ``losses`` as a file keeps them, so that a resumed run says the same."""
    return _halves(losses).astype(np.float64) / _SCALE


def write_results(path: Path, about: About, results: Mapping[str, Result]) -> None:
    """Replace ``path``; see `research.kept_rows.write_rows`."""
    write_rows(path, about, {name: _encode(result) for name, result in results.items()})


def read_results(path: Path, about: About, replace: bool = False) -> dict[str, Result]:
    """Return the rows in ``path``; see `research.kept_rows.read_rows`."""
    return read_rows(path, about, _decode, "ideas beyond pairs", replace, strict=True)


def _encode(result: Result) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for what in (*LOSSES, *FLAGS):
        mean = result.mean(what)
        row[what] = None if math.isnan(mean.value) else round(mean.value, 8)
    row["schedule"] = result.schedule
    row["tokens"] = result.tokens
    row["relative_flops"] = result.relative_flops
    row["seconds"] = result.seconds
    row["by_image"] = {what: _text(_halves(getattr(result, what))) for what in LOSSES}
    row["by_image"] |= {what: _text(np.packbits(getattr(result, what))) for what in FLAGS}
    return row


def _decode(row: dict[str, Any], images: int) -> Result:
    by_image = row["by_image"]
    fields: dict[str, Any] = {}
    for what in LOSSES:
        halves = np.frombuffer(base64.b64decode(by_image[what]), np.float16)
        if len(halves) != images:
            raise ValueError(f"{what} of {len(halves)} images, not of {images}")
        fields[what] = halves.astype(np.float64) / _SCALE
    for what in FLAGS:
        bits = np.frombuffer(base64.b64decode(by_image[what]), np.uint8)
        fields[what] = np.unpackbits(bits, count=images).astype(bool)
    for name in ("schedule", "tokens", "relative_flops", "seconds"):
        fields[name] = row[name]
    return Result(**fields)


def _halves(losses: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    return (np.clip(losses, 0, _LARGEST) * _SCALE).astype(np.float16)


def _text(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")
