"""``tome-serve tune MODEL FOLDER``: measures the rules, and goes on where it was interrupted."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID

from server.catalog.entries import ModelSpec
from server.catalog.profiles import read_profile, write_profile
from server.commands.console import make_progress
from server.commands.flags import TuneCommand
from server.commands.offline import (
    label_set_versions,
    load_runner,
    parse_schedules,
    pick_model,
    run_conditions,
)
from server.commands.tuning.measurement import check_same_pictures, measure_rule, new_record
from server.commands.tuning.pictures import Pictures, open_pictures
from server.commands.tuning.report import Report, plot_report, print_report
from server.commands.tuning.rows import profile_rows, rule_quality
from server.commands.tuning.rule_choice import (
    RULES_MEASURED,
    MergingRule,
    RuleQuality,
    choose_rule,
    next_rule,
)
from server.commands.tuning.state import RuleRecord, StateFile, TuningState, fingerprint
from server.engine.execution.runner import Runner
from server.engine.loading.label_vectors import activation_of, read_label_sets
from server.engine.loading.model_loader import find_checkpoint
from server.errors import ConfigError
from server.media.modality import Modality
from server.settings import VERSION
from tome_core.schedule import Schedule

log = logging.getLogger("tome.server")


def tune(command: TuneCommand) -> int:
    """Measure, print the table, and write the profile and the plot. Return the exit code.

    Raises:
        ConfigError: there is no such model or folder, the model does not take pictures, or a file
            cannot be written.
        KeyboardInterrupt: what was measured so far is kept, and the log says so.
    """
    tuning = begin(command)
    try:
        tuning.measure()
    except KeyboardInterrupt:
        log.warning(
            "interrupted; %s keeps what was measured: the same command goes on from there, with"
            " --fresh it starts again",
            tuning.file.path,
        )
        raise
    report = tuning.report()
    print_report(report, tuning.profile, command.config)
    write_profile(tuning.profile, report.rows, report.metadata)
    if command.plot is not None:
        plot_report(report, command.plot)
    tuning.file.remove()
    return 0


def begin(command: TuneCommand) -> Tuning:
    """Return the measurement that ``command`` asks for, with what an interruption left of it.

    Raises:
        ConfigError: see `tune`.
    """
    spec = pick_model(command, command.model, text=command.text)
    if label_sets := read_label_sets(spec):
        spec = spec.model_copy(update={"activation": activation_of(spec, label_sets)})
    profile = command.profile or Path(f"{spec.name}.profile.json")
    _check_profile(profile)
    pictures = open_pictures(command.folder, command.limit)
    path = profile.with_name(f"{profile.name}.partial")
    file = StateFile(path, _fingerprint(command, spec, pictures))
    state = _begin_state(file, fresh=command.fresh)
    return Tuning(command, spec, pictures, profile, file, state)


def _check_profile(profile: Path) -> None:
    """Check before the work that ``profile`` can be written.

    Raises:
        ConfigError: it cannot, or it has what ``evaluate`` alone measures, which would be lost.
    """
    if not profile.exists():
        return
    rows = read_profile(profile)
    for measured, field in (("accuracies", "accuracy"), ("recalls of neighbours", "recall_1")):
        if any(getattr(row, field) is not None for row in rows):
            raise ConfigError(
                f"{profile} has {measured} that tome-serve evaluate measured; name another"
                " --profile"
            )
    if not os.access(profile, os.W_OK):
        raise ConfigError(f"cannot write {profile}: Permission denied")


def _fingerprint(command: TuneCommand, spec: ModelSpec, pictures: Pictures) -> str:
    """Return a hash of all that the measurement depends on."""
    checkpoint = find_checkpoint(spec)
    weights = None
    if checkpoint is not None:
        stat = checkpoint.stat()
        weights = [str(checkpoint), stat.st_size, stat.st_mtime_ns]
    options = command.model_dump(
        mode="json", include={"r", "batch", "device", "dtype", "cpu_isa", "threads"}
    )
    return fingerprint(
        VERSION,
        spec.model_dump(mode="json"),
        weights,
        label_set_versions(spec),
        options,
        pictures.identity(),
    )


def _begin_state(file: StateFile, *, fresh: bool) -> TuningState:
    """Return what an interrupted measurement left, or an empty state."""
    state = None if fresh else file.read()
    if state is not None:
        log.info("going on from %s; --fresh starts again", file.path)
        return state
    if file.path.exists() and not fresh:
        log.info("%s is of another measurement, and is replaced", file.path)
    return TuningState()


@dataclass
class Tuning:
    """One measurement of a model: one rule after the other, that of its entry first.

    Attributes:
        profile: the file to write in the end.
        file: of ``state``, which has what was measured so far.
    """

    command: TuneCommand
    spec: ModelSpec
    pictures: Pictures
    profile: Path
    file: StateFile
    state: TuningState

    def measure(self) -> None:
        """Measure what ``state`` does not have.

        Raises:
            ConfigError: no picture can be read, pictures have changed since the measurement began,
                or it began on another device.
        """
        check_same_pictures(list(self._complete().values()), self.pictures.name)
        self.file.write(self.state, now=True)  # before hours of work: it may not be writable
        with make_progress() as progress:
            total = RULES_MEASURED * len(self.pictures)
            recorded = self._recorder(progress, progress.add_task("pictures", total=total))
            while (rule := next_rule(self._measured(), self._current)) is not None:
                log.info("measuring %s", rule.label)
                self._measure_rule(rule, recorded)

    def report(self) -> Report:
        """Return what `measure` has found."""
        records = self._complete()
        has_margin = self.spec.activation == "softmax"
        current = records[self._current]
        return Report(
            model=self.spec.name,
            data=self.pictures.name,
            pictures=current.measured,
            unreadable=current.unreadable,
            conditions={**self.state.conditions, "batch": self.command.batch},
            choice=choose_rule(self._measured(), self._current),
            rules={
                rule: profile_rows(rule, record, has_margin=has_margin)
                for rule, record in records.items()
            },
        )

    def _complete(self) -> dict[MergingRule, RuleRecord]:
        """Return the rules under which all pictures were measured."""
        return {
            rule: record
            for rule, record in self.state.rules.items()
            if record.measured and record.read == len(self.pictures)
        }

    def _measured(self) -> dict[MergingRule, RuleQuality]:
        return {rule: rule_quality(record) for rule, record in self._complete().items()}

    def _measure_rule(self, rule: MergingRule, recorded: Callable[[], None]) -> None:
        runner = self._baseline if rule == self._current else self._load(rule)
        # At r=0 nothing merges, and prop_attn makes no difference.
        same_exact = rule.merging == self._current.merging
        schedules = self._schedules(runner)
        records = self.state.rules
        # Where none of the pictures could be read, they may be readable now.
        if rule not in records or not records[rule].measured:
            records[rule] = new_record(runner, schedules)
        measure_rule(
            runner,
            runner if same_exact else self._baseline,
            schedules,
            self.pictures,
            records[rule],
            self.command.batch,
            recorded,
        )
        check_same_pictures(list(records.values()), self.pictures.name)
        self.file.write(self.state, now=True)

    @cached_property
    def _baseline(self) -> Runner:
        return self._load(self._current)

    @property
    def _current(self) -> MergingRule:
        return MergingRule(self.spec.merging, self.spec.prop_attn)

    def _load(self, rule: MergingRule) -> Runner:
        """Load the model under ``rule``, in the dtype in which the first one was loaded.

        Raises:
            ConfigError: the model does not take pictures, or the measurement began on another
                device.
        """
        settings = self.command
        conditions = self.state.conditions
        if conditions:
            settings = settings.model_copy(update={"dtype": conditions["dtype"]})
        runner = load_runner(settings, self.spec.model_copy(update=rule._asdict()))
        if runner.model.transform.modality is not Modality.IMAGE:
            noun = runner.model.transform.modality.noun
            raise ConfigError(f"{self.spec.name} takes {noun}s; tune measures models of pictures")
        found = run_conditions(runner)
        if conditions and conditions != found:
            raise ConfigError(
                f"{self.file.path} has speeds of {_listed(conditions)}, but the model runs with"
                f" {_listed(found)} now; start again with --fresh"
            )
        conditions.update(found)
        return runner

    def _schedules(self, runner: Runner) -> list[Schedule]:
        texts = self.command.r.split() or [str(level) for level in runner.model.levels]
        return parse_schedules(runner, texts)

    def _recorder(self, progress: Progress, task: TaskID) -> Callable[[], None]:
        def recorded() -> None:
            self.file.write(self.state)
            done = sum(record.read for record in self.state.rules.values())
            progress.update(task, completed=done)

        recorded()
        return recorded


def _listed(conditions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in conditions.items())
