"""Runs pictures under the levels of one rule, and records what merging changes and gains."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.commands.agreement import best_and_margin
from server.commands.cosines import cosines, dense_cosines
from server.commands.speeds import in_turn
from server.commands.tuning.pictures import PictureBatch, Pictures, picture_batches
from server.commands.tuning.state import LevelRecord, RuleRecord
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from tome_core import Outputs
from tome_core.schedule import Schedule

EXACT = Schedule.constant(0)


def new_record(runner: Runner, schedules: Sequence[Schedule]) -> RuleRecord:
    """Return an empty record for ``schedules``, of which the first is r=0."""
    cost = runner.model.network.cost()
    levels = {}
    for schedule in schedules:
        tokens = runner.tokens(schedule)
        relative_flops = round(cost.relative(tokens), 4)
        levels[str(schedule)] = LevelRecord(tokens[-1], relative_flops)
    return RuleRecord(levels)


def measure_rule(
    runner: Runner,
    baseline: Runner,
    schedules: Sequence[Schedule],
    pictures: Pictures,
    record: RuleRecord,
    batch: int,
    recorded: Callable[[], None],
    *,
    with_patches: bool = True,
    keep_features: Callable[[Sequence[npt.NDArray[np.float32]]], None] | None = None,
) -> None:
    """Measure the pictures that ``record`` does not have yet.

    Every batch runs under every schedule, and at r=0 by ``baseline``, one after the other. Each
    batch begins with another schedule (see `server.commands.speeds`).

    Args:
        runner: has the model under the rule.
        baseline: has it under the rule of its entry; may be ``runner``.
        schedules: of the record, the first of them r=0.
        pictures: all of them.
        record: is extended by whole batches.
        batch: pictures in one forward pass.
        recorded: is called after each batch.
        with_patches: whether the features of patches are compared, where a model has no classifier.
        keep_features: is called with the pooled features of each batch, ``(B, D)`` for each of the
            schedules.
    """
    _warm_up(runner, baseline, schedules, min(batch, len(pictures) - record.read))
    for part in picture_batches(runner.model.transform, pictures, record.read, batch):
        number = len(record.batch_sizes)
        passes = _run(runner, baseline, schedules, part.inputs, number, with_patches=with_patches)
        _add(record, part, passes)
        if passes is not None and keep_features is not None:
            keep_features(passes.features)
        recorded()


def _warm_up(runner: Runner, baseline: Runner, schedules: Sequence[Schedule], images: int) -> None:
    """Run a batch of ``images`` under every schedule, so that the first one that is timed is usual.

    Memory and operators are prepared for the size of a batch: one that is larger than any before
    takes longer, and where pictures are few, no median hides it.
    """
    for schedule in schedules:
        runner.seconds([schedule] * images)
    if baseline is not runner:
        baseline.seconds([EXACT] * images)


@dataclass(frozen=True)
class _Pass:
    """One batch under one schedule.

    Attributes:
        seconds: that it took.
    """

    outputs: Outputs
    seconds: float


@dataclass(frozen=True)
class _Passes:
    """One batch under all schedules.

    Attributes:
        levels: what to add to each level, by the name of the list.
        baseline_seconds: of one picture at r=0.
        features: the pooled ones of each level, ``(B, D)``.
    """

    levels: list[dict[str, list[Any]]]
    baseline_seconds: float
    features: list[npt.NDArray[np.float32]]


def _run(
    runner: Runner,
    baseline: Runner,
    schedules: Sequence[Schedule],
    inputs: npt.NDArray[Any],
    number: int,
    *,
    with_patches: bool,
) -> _Passes | None:
    """Run one batch; None if it is empty.

    Args:
        number: of the batch; decides which schedule is the first.
        with_patches: see `measure_rule`.
    """
    count = len(inputs)
    if count == 0:
        return None
    jobs = list(enumerate((runner, schedule) for schedule in schedules))
    if baseline is not runner:
        jobs.append((len(jobs), (baseline, EXACT)))
    passes: dict[int, _Pass] = {}
    for index, (used, schedule) in in_turn(jobs, number):
        passes[index] = _pass(used, inputs, schedule)
    dense = _dense(runner, schedules, inputs) if with_patches else []
    exact = passes[0]
    levels = []
    for index in range(len(schedules)):
        level = _compare(runner, passes[index], exact)
        if dense:
            level["dense_cosines"] = dense[index]
        levels.append(level)
    # Where ``runner`` is the baseline, its r=0 is the last one too.
    last = passes[len(jobs) - 1] if baseline is not runner else exact
    features = [passes[index].outputs.features.numpy() for index in range(len(schedules))]
    return _Passes(levels, last.seconds / count, features)


def _pass(runner: Runner, inputs: npt.NDArray[Any], schedule: Schedule) -> _Pass:
    """Run a batch and wait for its results."""
    started = time.perf_counter()
    outputs = runner.outputs(inputs, [schedule] * len(inputs))
    on_host = Outputs(outputs.logits.float().cpu(), outputs.features.float().cpu(), None)
    return _Pass(on_host, time.perf_counter() - started)


def _compare(runner: Runner, merged: _Pass, exact: _Pass) -> dict[str, list[Any]]:
    """Return what one pass adds to the record of its level."""
    features = merged.outputs.features.numpy()
    level: dict[str, list[Any]] = {
        "seconds": [merged.seconds / len(features)],
        "cosines": cosines(features, exact.outputs.features.numpy()).tolist(),
    }
    if has_classes(runner):
        classes, margins = best_and_margin(merged.outputs.logits)
        level["classes"] = classes.tolist()
        level["margins"] = margins.tolist()
    return level


def has_classes(runner: Runner) -> bool:
    """Return whether the model has a best class, which merging may change."""
    return len(runner.model.labels) > 1


def _dense(
    runner: Runner, schedules: Sequence[Schedule], inputs: npt.NDArray[Any]
) -> list[list[float]]:
    """Return the cosines of the patches of each image, by schedule.

    The list is empty for a model with a classifier, whose patches nobody reads.
    """
    if has_classes(runner):
        return []
    exact = _dense_features(runner, inputs, schedules[0])
    found = [[1.0] * len(inputs)]
    for schedule in schedules[1:]:
        merged = _dense_features(runner, inputs, schedule)
        found.append(dense_cosines(merged, exact).tolist())
    return found


def _dense_features(
    runner: Runner, inputs: npt.NDArray[Any], schedule: Schedule
) -> npt.NDArray[np.float32]:
    return runner.dense(inputs, [schedule] * len(inputs)).cpu().numpy()


def _add(record: RuleRecord, part: PictureBatch, passes: _Passes | None) -> None:
    record.read = part.end
    record.unreadable.update(part.unreadable)
    if passes is None:
        return
    record.batch_sizes.append(len(part.inputs))
    record.baseline_seconds.append(passes.baseline_seconds)
    for level, added in zip(record.levels.values(), passes.levels, strict=True):
        for name, values in added.items():
            getattr(level, name).extend(values)


def check_same_pictures(
    records: Sequence[RuleRecord], folder: str, remedy: str = "measure again with --fresh"
) -> None:
    """Check that every rule was measured on the same pictures.

    Args:
        records: of the rules, that of the model's entry first; may be none.
        folder: name of the folder, for the messages.
        remedy: what to do where pictures have changed.

    Raises:
        ConfigError: pictures have changed in between, or none can be read.
    """
    if not records:
        return
    first = records[0]
    if first.measured == 0:
        name, reason = next(iter(first.unreadable.items()))
        raise ConfigError(f"no picture in {folder} can be read; of {name}: {reason}")
    if any(set(each.unreadable) != set(first.unreadable) for each in records):
        raise ConfigError(f"pictures in {folder} changed meanwhile; {remedy}")
