"""Which jobs of a queue will be late, for any work limit. Pure: no torch, no clock.

`QueueForecast` asks the queue model (`server.latency.queue_model`) for the batches of the whole
queue, as if nothing else arrived. Adaptive r needs it for several work limits per batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from server.engine.scheduling.options import Option
from server.ipc.messages import Job
from server.latency.cost import CostModel
from server.latency.queue_model import Bounds, ModelQueue, second_seconds

# Returns the latest cost model of a network, by the name of its model.
CostModels = Callable[[str], CostModel]


@dataclass(slots=True, eq=False)
class QueuedJob:
    """One job in the queue.

    Attributes:
        options: from least to most merging, each faster in full batches than those before it.
            There is one where the request names a schedule.
        due: time of its deadline; without a deadline, the time of its arrival plus a target.
        binding_due: ``due`` if that may end a batch or lower the work limit, as it may with a
            deadline, and for a job that leaves its schedule to the engine; else infinity.
    """

    job: Job
    options: tuple[Option, ...]
    due: float
    binding_due: float

    def option_within(self, work_limit: float) -> Option:
        """Return the option that merges least within ``work_limit``, or the last where none is."""
        for option in self.options:
            if option.image_cost.relative_flops <= work_limit:
                return option
        return self.options[-1]


@dataclass
class _ModelJobs:
    """The jobs of one model in the queue.

    Attributes:
        positions: in the whole queue.
        due: when each may be late.
        neighbours: how many jobs in turn have the same options, and one of them.
    """

    positions: list[int] = field(default_factory=list)
    due: list[float] = field(default_factory=list)
    neighbours: list[tuple[int, QueuedJob]] = field(default_factory=list)

    def options_within(self, work_limit: float) -> list[Option]:
        """Return the option of each job within ``work_limit``."""
        options: list[Option] = []
        for count, queued in self.neighbours:
            options += [queued.option_within(work_limit)] * count
        return options


class QueueForecast:
    """Which jobs of a queue will be late if nothing else arrives, for any work limit.

    Args:
        queue: earliest due first.
        now: when the first batch begins.
        reserve: share by which all batches but the next are lengthened, for jobs that may yet
            arrive and be due earlier.
        second_passes: whether the second passes count that images may take, by the share of images
            that do.
    """

    def __init__(
        self,
        queue: Sequence[QueuedJob],
        now: float,
        bounds: Bounds,
        cost_models: CostModels,
        reserve: float = 0.0,
        second_passes: bool = False,
    ) -> None:
        self._now = now
        self._bounds = bounds
        self._cost_models = cost_models
        self._reserve = reserve
        self._second_passes = second_passes
        self._models: dict[str, _ModelJobs] = {}
        position = 0
        for _, same_options in groupby(queue, key=attrgetter("options")):
            neighbours = list(same_options)
            stop = position + len(neighbours)
            jobs = self._models.setdefault(neighbours[0].job.model, _ModelJobs())
            jobs.positions += range(position, stop)
            jobs.due += [queued.binding_due for queued in neighbours]
            jobs.neighbours.append((len(neighbours), neighbours[0]))
            position = stop

    def is_late(self, work_limit: float) -> bool:
        """Return whether any job finishes after it is due, under ``work_limit``."""
        return any(end > min(due_times) for end, _, due_times in self._batches(work_limit))

    def late_positions(self, work_limit: float) -> list[int]:
        """Return the positions of the jobs that finish after they are due, under ``work_limit``."""
        late = []
        for end, positions, due_times in self._batches(work_limit):
            for position, due in zip(positions, due_times, strict=True):
                if end > due:
                    late.append(position)
        return late

    def _batches(self, work_limit: float) -> Iterator[tuple[float, list[int], list[float]]]:
        """Yield of each batch when it ends, and of its jobs the positions and when they are due."""
        waiting = {model: self._model_queue(model, work_limit) for model in self._models}

        def next_position(model: str) -> int:
            taken = waiting[model].taken
            return self._models[model].positions[taken]

        start = self._now
        stretch = 1.0
        while waiting:
            model = min(waiting, key=next_position)
            queue = waiting[model]
            begin = queue.taken
            start += queue.take_batch(start) * stretch
            stretch = 1.0 + self._reserve
            jobs = self._models[model]
            yield start, jobs.positions[begin : queue.taken], jobs.due[begin : queue.taken]
            if not queue:
                del waiting[model]

    def _model_queue(self, model: str, work_limit: float) -> ModelQueue:
        jobs = self._models[model]
        options = jobs.options_within(work_limit)
        image_costs = [option.image_cost for option in options]
        cost_model = self._cost_models(model)
        seconds_again: list[float] = []
        if self._second_passes:
            seconds_again = second_seconds([option.second for option in options], cost_model)
        return ModelQueue(image_costs, jobs.due, self._bounds, cost_model, seconds_again)
