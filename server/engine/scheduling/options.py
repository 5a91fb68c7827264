"""The options of a job: the schedules that it allows, with their costs. No torch, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from server.engine.scheduling.adaptive_r import useful_options
from server.engine.scheduling.batch_builder import Option
from server.ipc.messages import Job
from server.latency.cost import CostModel, ImageCost
from tome_core.schedule import Schedule

_MAX_ENTRIES = 1024  # clients can send arbitrary choices


class ModelCosts(Protocol):
    """What the scheduler needs to know of one model's speed."""

    @property
    def cost_model(self) -> CostModel:
        """How long batches take now."""

    def image_cost(self, schedule: Schedule) -> ImageCost:
        """Return what one image under ``schedule`` adds to its batch."""

    def relative_flops(self, schedule: Schedule) -> float:
        """Return the FLOPs of one image as a share of those at r=0."""


class _Entry(NamedTuple):
    """The options of all jobs that have the same ``choices``.

    Attributes:
        all_options: one for each choice.
        useful: those that save time in batches of ``images``, by ``cost_model``.
    """

    choices: tuple[Schedule, ...]
    all_options: tuple[Option, ...]
    useful: tuple[Option, ...]
    cost_model: CostModel
    images: int


@dataclass
class OptionsCache:
    """Remembers the options of jobs, by their model and choices.

    Most jobs share one tuple of choices, so the key is the identity of the tuple: hashing schedules
    for every job would take too long.
    """

    _entries: dict[tuple[str, int], _Entry] = field(default_factory=dict)

    def get(
        self,
        job: Job,
        costs: ModelCosts,
        images: int,
    ) -> tuple[Option, ...]:
        """Return the options of ``job`` that save time in batches of ``images``."""
        choices = job.choices
        cost_model = costs.cost_model
        key = (job.model, id(choices))
        entry = self._entries.get(key)
        if entry is None or entry.choices is not choices:
            all_options = _all_options(choices, costs)
        elif entry.cost_model is cost_model and entry.images == images:
            return entry.useful
        else:
            all_options = entry.all_options
        if len(self._entries) >= _MAX_ENTRIES:
            self._entries.clear()
        useful = useful_options(all_options, cost_model, images)
        self._entries[key] = _Entry(choices, all_options, useful, cost_model, images)
        return useful


def _all_options(
    choices: Sequence[Schedule],
    costs: ModelCosts,
) -> tuple[Option, ...]:
    options = []
    for schedule in choices:
        relative_flops = costs.relative_flops(schedule)
        image_cost = costs.image_cost(schedule)
        options.append(Option(schedule, relative_flops, image_cost))
    return tuple(options)
