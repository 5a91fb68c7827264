"""Learns how long batches take: fitted to the runs of the warm-up, refined by every batch. No torch, no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from server.engine.scheduling.slowdown import slowdown
from server.latency.cost import (
    NOTHING,
    Estimate,
    Features,
    Geometry,
    Recorded,
    Vector,
    binding,
    features,
    solve,
)
from tome_core.schedule import Schedule

# A batch counts for so much less with each later one; the warm-up never fades, so that what rarely
# runs stays known.
_FADE = 0.99
_RECENT = 11  # batches that contention and delay are taken from
_ERRORS = 64  # batches whose errors are the margin
_OUTLIER = (
    1.5  # times the prediction, or its inverse: beyond, a batch teaches nothing about coefficients
)
# Batches between two fits: a fit takes a fraction of a millisecond, of which a GPU's batch has few.
_REFIT = 4
_MARGIN = (0.05, 1.0)
# Times what a device takes by a graph: beyond, it waits for operators to be launched, at first
# sight.
_WAITS = 1.25
_TURNS = (
    4  # of telling batches that wait from those that do not, and fitting both: more change nothing
)


@dataclass(frozen=True)
class Sample:
    """One batch that ran: the schedule of each image, and seconds."""

    schedules: tuple[Schedule, ...]
    seconds: float


class Calibration:
    """The speed of one model on its device.

    Two things change what a batch takes. The shape of the costs hardly ever changes, and is in the
    coefficients, which move slowly. Whatever else uses the machine is in the contention and the
    delay, which move within some batches. Each batch updates these first, and the coefficients with
    what they leave unexplained.

    Args:
        samples: of the warm-up.
        recorded: what CUDA graphs run, as in the warm-up.

    Attributes:
        estimate: the latest.
        load, relative: of a schedule, as those of `Geometry`.
    """

    def __init__(
        self, geometry: Geometry, samples: Sequence[Sample], recorded: Recorded = NOTHING
    ) -> None:
        self.geometry = geometry
        self._recorded = recorded
        # Asked for every job that arrives; bounded, since clients choose schedules.
        self.load = lru_cache(maxsize=1024)(geometry.load)
        self.relative = lru_cache(maxsize=1024)(geometry.relative)
        self._plain = lru_cache(maxsize=1024)(self._at_r0)
        self._last: deque[tuple[float, float]] = deque(maxlen=_RECENT)
        self._errors: deque[float] = deque(maxlen=_ERRORS)
        self._anchor = _Sums()
        self._recent = _Sums()
        self._batches = 0
        rows = [(self.features(sample.schedules), sample.seconds) for sample in samples]
        self._start(rows)
        # Whatever disturbs a run makes it longer; a second fit leaves out the runs that the first
        # finds too long.
        self._start(
            [row for row in rows if row[1] < _OUTLIER * self.estimate.seconds(row[0])] or rows
        )

    def features(self, schedules: Sequence[Schedule]) -> Features:
        """Of a batch with these schedules."""
        return features([self.load(schedule) for schedule in schedules], self._recorded)

    def predict(self, schedules: Sequence[Schedule]) -> float:
        """Seconds that such a batch takes now."""
        return self.estimate.seconds(self.features(schedules))

    def unmerged(self, batch: Features, images: int, seconds: float) -> float:
        """What a ``batch`` of ``images`` that took ``seconds`` would have taken at r=0 in the same circumstances.

        By the ratio of the two predictions for a quiet machine, which an offline measurement can
        check: whatever slowed the batch slows its counterpart by the same factor, a delay too. A
        batch of several schedules may run operator by operator; its counterpart, whose images are
        alike, runs by a graph where r=0 is recorded, as it really would.
        """
        quiet = self.estimate.quiet()
        return seconds * quiet.seconds(self._plain(images)) / quiet.seconds(batch)

    def observe(self, batch: Features, seconds: float) -> None:
        """A batch has taken ``seconds``."""
        now = self.estimate
        bound = binding(batch, now.coefficients)
        expected = bound.dot(now.coefficients)
        self._errors.append(seconds / now.seconds(batch))
        self._last.append((expected, seconds))
        contention, delay = slowdown(self._last)
        quiet = (seconds - delay) / contention
        if expected / _OUTLIER < quiet < expected * _OUTLIER:
            self._recent.scale(_FADE)
            self._recent.add(bound, quiet)
        self._batches += 1
        self._update(
            self._fit() if self._batches % _REFIT == 0 else now.coefficients, contention, delay
        )

    def _at_r0(self, images: int) -> Features:
        return self.features([Schedule.constant(0)] * images)

    def _start(self, rows: Sequence[tuple[Features, float]]) -> None:
        parts = rows
        if recorded := [(row, seconds) for row, seconds in rows if not row.host]:
            # Graphs show what the device takes; a batch that takes longer operator by operator
            # waits for its host.
            device = self._anchored(recorded)
            parts = [
                (row.sides()[seconds < _WAITS * row.dot(device)], seconds) for row, seconds in rows
            ]
        coefficients = self._anchored(parts)
        for _ in range(_TURNS if recorded else 0):
            coefficients = self._anchored(
                [(binding(row, coefficients), seconds) for row, seconds in rows]
            )
        self.estimate = Estimate(coefficients, recorded=self._recorded)
        self._errors.clear()
        self._errors.extend(seconds / self.estimate.seconds(row) for row, seconds in rows)
        self._update(coefficients)

    def _anchored(self, rows: Sequence[tuple[Features, float]]) -> Features:
        """The fit to these runs of the warm-up."""
        self._anchor = _Sums()
        for row, seconds in rows:
            self._anchor.add(row, seconds)
        return self._fit()

    def _fit(self) -> Features:
        found = solve(
            self._anchor.gram + self._recent.gram, self._anchor.moment + self._recent.moment
        )
        # On average over the warm-up they predict what it took: were they free to follow how fast
        # all is, they would share the contention's work, and neither would mean anything.
        return Features(*(found * self._anchor.rows / (self._anchor.moment @ found)).tolist())

    def _update(self, coefficients: Features, contention: float = 1.0, delay: float = 0.0) -> None:
        errors = sorted(self._errors)
        exceeded = errors[math.ceil(0.9 * len(errors)) - 1] - 1
        margin = min(max(exceeded, _MARGIN[0]), _MARGIN[1])
        self.estimate = Estimate(coefficients, contention, delay, margin, self._recorded)


class _Sums:
    """The normal equations of a least-squares fit of relative errors, so that small batches count like large ones."""

    def __init__(self) -> None:
        size = len(Features._fields)
        self.gram: Vector = np.zeros((size, size))
        self.moment: Vector = np.zeros(size)
        self.rows = 0.0

    def add(self, row: Features, seconds: float) -> None:
        scaled = np.asarray(row) / seconds
        self.gram += np.outer(scaled, scaled)
        self.moment += scaled
        self.rows += 1

    def scale(self, factor: float) -> None:
        self.gram *= factor
        self.moment *= factor
        self.rows *= factor
