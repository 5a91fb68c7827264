"""The options of a job: the schedules that it allows, with their costs. No torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from server.ipc.messages import Job
from server.latency.cost import NO_COST, CostModel, ImageCost
from tome_core.schedule import Schedule

_MAX_ENTRIES = 1024  # clients can send arbitrary choices


@dataclass(frozen=True, eq=False)
class Option:
    """One schedule that a job may get, and the computation of one image under it.

    Attributes:
        second: the mean computation of the second passes that images may take; `NO_COST` where
            they take none.
    """

    schedule: Schedule
    image_cost: ImageCost
    second: ImageCost = NO_COST


class ModelCosts(Protocol):
    """What the scheduler needs to know of one model's speed."""

    @property
    def cost_model(self) -> CostModel:
        """How long batches take now."""

    @property
    def option(self) -> Callable[[Schedule], Option]:
        """Returns the option of a schedule, the same object for the same schedule."""


def useful_options(
    options: Iterable[Option],
    cost_model: CostModel,
    images: int,
    *,
    all_passes: bool = False,
) -> tuple[Option, ...]:
    """Sort ``options`` from least to most merging, without those that save no time.

    Merging costs time too, so fewer FLOPs do not always mean less time. An option that merges more
    and is no faster only costs accuracy.

    Args:
        images: size of the batch in which options are compared.
        all_passes: whether the second passes of images count.
    """
    useful: list[Option] = []
    least_seconds = math.inf
    for option in sorted(options, key=_least_merging_first):
        seconds = cost_model.uniform_batch_seconds(option.image_cost, images)
        if all_passes:
            seconds += images * cost_model.image_seconds(option.second)
        if seconds < least_seconds:
            useful.append(option)
            least_seconds = seconds
    return tuple(useful)


def _least_merging_first(option: Option) -> float:
    return -option.image_cost.relative_flops


class _Entry(NamedTuple):
    """The options of all jobs that have the same ``choices``.

    Attributes:
        useful: those that save time in batches of ``images``, by ``cost_model``.
    """

    choices: tuple[Schedule, ...]
    useful: tuple[Option, ...]
    cost_model: CostModel
    images: int

    def is_current(self, choices: tuple[Schedule, ...], cost_model: CostModel, images: int) -> bool:
        """Return whether the entry holds for these very objects."""
        same_objects = self.choices is choices and self.cost_model is cost_model
        return same_objects and self.images == images


@dataclass
class OptionsCache:
    """Remembers the options of jobs, by their model, choices and second pass.

    Most jobs share one tuple of choices, so the key is the identity of the tuple: hashing schedules
    for every job would take too long.
    """

    _entries: dict[Hashable, _Entry] = field(default_factory=dict)

    def get(
        self,
        job: Job,
        costs: ModelCosts,
        images: int,
    ) -> tuple[Option, ...]:
        """Return the options of ``job`` that save time in batches of ``images``.

        With a deadline, the first pass may have to do, so options are compared by it alone. Without
        one, every image takes all of its passes, and options that merge so much that most images
        run again would only add to the load.
        """
        choices = job.choices
        cost_model = costs.cost_model
        second = job.second
        all_passes = job.deadline is None
        key = (job.model, id(choices), second, all_passes)
        entry = self._entries.get(key)
        if entry is not None and entry.is_current(choices, cost_model, images):
            return entry.useful
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        options = [costs.option(choice) for choice in choices]
        if second is not None:
            options = [
                _with_second_pass(option, second.schedule, share, costs)
                for option, share in zip(options, second.shares, strict=True)
            ]
        useful = useful_options(options, cost_model, images, all_passes=all_passes)
        self._entries[key] = _Entry(choices, useful, cost_model, images)
        return useful


def _with_second_pass(option: Option, second: Schedule, share: float, costs: ModelCosts) -> Option:
    """Return ``option`` with the cost that is expected if ``share`` of the images run again."""
    if share == 0:
        return option
    second_cost = costs.option(second).image_cost
    return replace(option, second=second_cost.of_share(share))
