"""The options of a job: the schedules that it allows, with their costs. No torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from server.ipc.messages import Job, SecondPass
from server.latency.cost import CostModel, ImageCost
from tome_core.schedule import Schedule

_MAX_ENTRIES = 1024  # clients can send arbitrary choices


@dataclass(frozen=True, eq=False)
class Option:
    """One schedule that a job may get, and the computation of one image under it.

    Attributes:
        with_second: the mean computation with the second passes that images may take; None where
            they take none.
    """

    schedule: Schedule
    image_cost: ImageCost
    with_second: ImageCost | None = None

    @property
    def expected_cost(self) -> ImageCost:
        """The mean computation of an image, in all its passes."""
        return self.with_second or self.image_cost


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
) -> tuple[Option, ...]:
    """Sort ``options`` from least to most merging, without those that save no time.

    Merging costs time too, so fewer FLOPs do not always mean less time. An option that merges more
    and is no faster only costs accuracy.

    Args:
        images: size of the batch in which options are compared.
    """
    useful: list[Option] = []
    least_seconds = math.inf
    for option in sorted(options, key=_least_merging_first):
        seconds = cost_model.uniform_batch_seconds(option.image_cost, images)
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

    _entries: dict[tuple[str, int, SecondPass | None], _Entry] = field(default_factory=dict)

    def get(
        self,
        job: Job,
        costs: ModelCosts,
        images: int,
    ) -> tuple[Option, ...]:
        """Return the options of ``job`` that save time in batches of ``images``."""
        choices = job.choices
        cost_model = costs.cost_model
        second = job.second
        key = (job.model, id(choices), second)
        entry = self._entries.get(key)
        if entry is not None and entry.is_current(choices, cost_model, images):
            return entry.useful
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        useful = useful_options(map(costs.option, choices), cost_model, images)
        if second is not None:
            useful = tuple(_with_second_pass(option, second, costs) for option in useful)
        self._entries[key] = _Entry(choices, useful, cost_model, images)
        return useful


def _with_second_pass(option: Option, second: SecondPass, costs: ModelCosts) -> Option:
    """Return ``option`` with its expected cost; what merges no more than it has no second pass."""
    second_cost = costs.option(second.schedule).image_cost
    if option.image_cost.relative_flops >= second_cost.relative_flops:
        return option
    expected = option.image_cost.expected(second_cost, second.share)
    return replace(option, with_second=expected)
