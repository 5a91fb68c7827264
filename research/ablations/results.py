"""Results by image, and the file that keeps them, so that an interrupted run can resume."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from research.kept_rows import About, read_rows, write_rows


@dataclass(frozen=True)
class Result:
    """One variant over all images.

    Attributes:
        correct: for each image, whether its class was found, ``bool (M,)``.
        schedule: its text form.
        tokens: left after the last block.
        relative_flops: of what an image costs without merging. Matching is counted as bipartite,
            or as that of `tome_core.Pairs`.
        seconds: the run took.
    """

    correct: npt.NDArray[np.bool_]
    schedule: str
    tokens: int
    relative_flops: float
    seconds: float

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * float(self.correct.mean())

    @property
    def error(self) -> float:
        """Standard error of `accuracy` (binomial), in points."""
        share = float(self.correct.mean())
        return 100 * math.sqrt(share * (1 - share) / len(self.correct))


def difference(a: Result, b: Result) -> tuple[float, float]:
    """How many points ``a`` is above ``b``, and the standard error of that.

    Both saw the same images, so the error is that of the differences image by image, which is
    smaller than the errors of the two accuracies suggest.
    """
    by_image = a.correct.astype(np.float64) - b.correct
    return 100 * float(by_image.mean()), 100 * float(by_image.std()) / math.sqrt(len(by_image))


def write_results(path: Path, about: About, results: Mapping[str, Result]) -> None:
    """Replace ``path`` as a whole.

    Raises:
        ConfigError: the file cannot be written.
    """
    rows = {}
    for name, result in results.items():
        packed = base64.b64encode(np.packbits(result.correct).tobytes()).decode("ascii")
        summary = {"accuracy": round(result.accuracy, 4), "error": round(result.error, 4)}
        rows[name] = summary | asdict(result) | {"correct": packed}
    write_rows(path, about, rows)


def read_results(path: Path, about: About, replace: bool = False) -> dict[str, Result]:
    """Return the rows in ``path``; see `research.kept_rows.read_rows`."""
    return read_rows(path, about, _result, "ablations", replace)


def _result(row: dict[str, Any], images: int) -> Result:
    bits = np.frombuffer(base64.b64decode(row["correct"]), np.uint8)
    correct = np.unpackbits(bits, count=images).astype(bool)
    return Result(correct, row["schedule"], row["tokens"], row["relative_flops"], row["seconds"])
