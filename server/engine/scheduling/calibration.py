"""Calibrates the cost model: fitted to the warm-up, refined by every batch. No torch, no clock."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from server.engine.scheduling.options import Option
from server.engine.scheduling.slowdown import slowdown
from server.latency.cost import (
    NO_GRAPHS,
    CostFeatures,
    CostModel,
    Geometry,
    RecordedGraphs,
    batch_features,
    bottleneck,
)
from server.latency.least_squares import Vector, nonnegative_least_squares
from tome_core.schedule import Schedule

# Schedules whose features are cached. Clients choose schedules, so the number needs a bound.
_CACHED_SCHEDULES = 1024

# Weight that a batch keeps in the fit with each later batch. Batches of the warm-up keep all of it,
# so that what rarely runs stays known.
_DECAY = 0.99

_SLOWDOWN_BATCHES = 11  # recent batches that determine contention and delay
_ERROR_BATCHES = 64  # recent batches whose errors determine the margin
_ERROR_QUANTILE = 0.9
_MIN_MARGIN = 0.05
_MAX_MARGIN = 1.0

# A batch is an outlier if it takes this many times its prediction, or less than the inverse share.
# Outliers do not refine the coefficients.
_OUTLIER = 1.5

# Batches between two fits. A fit takes a fraction of a millisecond, which matters on a GPU.
_REFIT_INTERVAL = 4

# In the first fit a batch that runs operator by operator counts as waiting for its host, if it
# takes this many times what the device would take with a graph.
_HOST_BOUND = 1.25

# Fits of the warm-up, each followed by telling host-bound batches from the others. More fits change
# nothing.
_WARM_UP_FITS = 4

# The features of one batch, and its seconds.
_Row = tuple[CostFeatures, float]


@dataclass(frozen=True)
class Sample:
    """One batch that ran in the warm-up: the schedule of each image, and seconds."""

    schedules: tuple[Schedule, ...]
    seconds: float


class Calibration:
    """The speed of one model on its device.

    Two things determine how long a batch takes. The cost of operations hardly ever changes: the
    coefficients hold it and move slowly. Other users of the machine come and go: the contention and
    the delay hold their effect and move within a few batches. Each batch first updates contention
    and delay, then refines the coefficients with the rest of its error.

    Args:
        samples: batches of the warm-up.
        recorded: what CUDA graphs run, as in the warm-up.

    Attributes:
        cost_model: the latest one.
        option: returns the option of a schedule; cached, since every job that arrives needs it.
    """

    def __init__(
        self,
        geometry: Geometry,
        samples: Sequence[Sample],
        recorded: RecordedGraphs = NO_GRAPHS,
    ) -> None:
        self.geometry = geometry
        self._recorded = recorded
        self.option = lru_cache(maxsize=_CACHED_SCHEDULES)(self._make_option)
        self._r0_features = lru_cache(maxsize=_CACHED_SCHEDULES)(self._compute_r0_features)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_SLOWDOWN_BATCHES)
        self._errors: deque[float] = deque(maxlen=_ERROR_BATCHES)
        self._warm_up_sums = _NormalEquations()
        self._served_sums = _NormalEquations()
        self._batches = 0
        rows = [(self.features(sample.schedules), sample.seconds) for sample in samples]
        self._fit_warm_up(rows)
        # Disturbances only make a run longer. A second fit leaves out the runs that are too long by
        # the first one.
        undisturbed_rows = [
            (batch, seconds)
            for batch, seconds in rows
            if seconds < _OUTLIER * self.cost_model.seconds(batch)
        ]
        self._fit_warm_up(undisturbed_rows or rows)

    def features(self, schedules: Sequence[Schedule]) -> CostFeatures:
        """Return the features of a batch whose images have these schedules."""
        image_costs = [self.option(schedule).image_cost for schedule in schedules]
        return batch_features(image_costs, self._recorded)

    def predict(self, schedules: Sequence[Schedule]) -> float:
        """Return the seconds that a batch of these schedules takes now."""
        return self.cost_model.seconds(self.features(schedules))

    def r0_seconds(self, batch: CostFeatures, images: int, seconds: float) -> float:
        """Return the seconds that a batch would have taken at r=0 under the same conditions.

        The batch's own seconds are scaled by the ratio of two predictions for an undisturbed
        machine, which an offline measurement can check. So the contention and the delay of the
        batch scale with it. A batch of several schedules may run operator by operator; at r=0 its
        images are alike, so a graph runs them where r=0 is recorded.

        Args:
            batch: its features.
            images: its size.
            seconds: that it took.
        """
        undisturbed = self.cost_model.undisturbed()
        r0_seconds = undisturbed.seconds(self._r0_features(images))
        return seconds * r0_seconds / undisturbed.seconds(batch)

    def observe(self, batch: CostFeatures, seconds: float) -> None:
        """Update the cost model after a batch has taken ``seconds``."""
        before = self.cost_model
        critical = bottleneck(batch, before.coefficients)
        expected = critical.dot(before.coefficients)
        self._errors.append(seconds / before.seconds(batch))
        self._recent.append((expected, seconds))
        contention, delay = slowdown(self._recent)
        undisturbed_seconds = (seconds - delay) / contention
        if expected / _OUTLIER < undisturbed_seconds < expected * _OUTLIER:
            self._served_sums.scale(_DECAY)
            self._served_sums.add(critical, undisturbed_seconds)
        self._batches += 1
        coefficients = before.coefficients
        if self._batches % _REFIT_INTERVAL == 0:
            coefficients = self._fit()
        self._update(coefficients, contention, delay)

    def _make_option(self, schedule: Schedule) -> Option:
        return Option(schedule, self.geometry.image_cost(schedule))

    def _compute_r0_features(self, images: int) -> CostFeatures:
        return self.features([Schedule.constant(0)] * images)

    def _fit_warm_up(self, rows: Sequence[_Row]) -> None:
        """Set the cost model from these batches of the warm-up."""
        by_graph = [(batch, seconds) for batch, seconds in rows if not batch.host]
        if by_graph:
            coefficients = self._fit_host_and_device(rows, by_graph)
        else:
            coefficients = self._fit_rows(rows)
        self.cost_model = CostModel(coefficients, recorded=self._recorded)
        self._errors.clear()
        self._errors.extend(seconds / self.cost_model.seconds(batch) for batch, seconds in rows)
        self._update(coefficients)

    def _fit_host_and_device(
        self,
        rows: Sequence[_Row],
        by_graph: Sequence[_Row],
    ) -> CostFeatures:
        """Fit each batch by the side that it waits for: its host or its device."""
        # Graphs show what the device takes. A batch that takes longer than that operator by
        # operator waits for its host.
        device = self._fit_rows(by_graph)
        critical_rows = []
        for batch, seconds in rows:
            host_side, device_side = batch.host_and_device()
            is_host_bound = seconds >= _HOST_BOUND * batch.dot(device)
            critical_rows.append((host_side if is_host_bound else device_side, seconds))
        coefficients = self._fit_rows(critical_rows)
        for _ in range(_WARM_UP_FITS):
            critical_rows = [(bottleneck(batch, coefficients), seconds) for batch, seconds in rows]
            coefficients = self._fit_rows(critical_rows)
        return coefficients

    def _fit_rows(self, rows: Sequence[_Row]) -> CostFeatures:
        """Replace the batches of the warm-up by ``rows``, and fit."""
        self._warm_up_sums = _NormalEquations()
        for batch, seconds in rows:
            self._warm_up_sums.add(batch, seconds)
        return self._fit()

    def _fit(self) -> CostFeatures:
        """Fit the coefficients to all batches so far."""
        warm_up = self._warm_up_sums
        gram = warm_up.gram + self._served_sums.gram
        moment = warm_up.moment + self._served_sums.moment
        solution = nonnegative_least_squares(gram, moment)
        # The mean prediction for the warm-up stays what it took. If the coefficients could follow
        # the speed of everything, they and the contention would explain the same thing.
        scaled = solution * warm_up.rows / (warm_up.moment @ solution)
        return CostFeatures(*scaled.tolist())

    def _update(
        self,
        coefficients: CostFeatures,
        contention: float = 1.0,
        delay: float = 0.0,
    ) -> None:
        errors = sorted(self._errors)
        position = math.ceil(_ERROR_QUANTILE * len(errors)) - 1
        exceeded = errors[position] - 1
        margin = min(max(exceeded, _MIN_MARGIN), _MAX_MARGIN)
        self.cost_model = CostModel(coefficients, contention, delay, margin, self._recorded)


class _NormalEquations:
    """The normal equations of a least-squares fit of relative errors.

    Relative errors let small batches count like large ones.
    """

    def __init__(self) -> None:
        size = len(CostFeatures._fields)
        self.gram: Vector = np.zeros((size, size))
        self.moment: Vector = np.zeros(size)
        self.rows = 0.0

    def add(self, batch: CostFeatures, seconds: float) -> None:
        scaled = np.asarray(batch) / seconds
        self.gram += np.outer(scaled, scaled)
        self.moment += scaled
        self.rows += 1

    def scale(self, factor: float) -> None:
        self.gram *= factor
        self.moment *= factor
        self.rows *= factor
