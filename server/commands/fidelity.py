"""``tome-serve evaluate --task embed``: what each r costs embeddings, on pictures without labels.

Runs pictures as `server.commands.tuning` does, and compares their nearest neighbours as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from rich.table import Table

from server.catalog.entries import ModelSpec
from server.catalog.profiles import ProfileRow
from server.commands.console import make_progress, table_console
from server.commands.datasets import FASHION_MNIST_DIR
from server.commands.flags import EvaluateCommand
from server.commands.neighbours import NeighbourRecall
from server.commands.offline import load_runner, parse_schedules, pick_model, run_conditions
from server.commands.plotting import COSINE, plot_profiles
from server.commands.profile_files import (
    KnownProfile,
    model_identity,
    open_profile,
    write_embeddings,
)
from server.commands.row_qualities import with_recall
from server.commands.tuning.measurement import check_same_pictures, measure_rule, new_record
from server.commands.tuning.pictures import Pictures, open_pictures
from server.commands.tuning.report import with_interval
from server.commands.tuning.rows import profile_rows
from server.commands.tuning.rule_choice import MergingRule
from server.commands.tuning.state import RuleRecord
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.logs import log_step
from server.media.modality import Modality
from tome_core.schedule import Schedule

log = logging.getLogger("tome.server")


def evaluate_embeddings(
    command: EvaluateCommand, beside: Mapping[str, Sequence[ProfileRow]]
) -> int:
    """Measure, print a table for each rule, and write profile and plot. Return the exit code.

    Args:
        command: its ``r`` is by default the levels of the model, its ``merging`` the entry's rule.
        beside: curves that are drawn in the same plot, by their names.

    Raises:
        ConfigError: there is no such model or folder, the model does not take pictures, none of
            them can be read, or a file cannot be written.
    """
    spec = pick_model(command, command.model)
    identity = model_identity(spec)
    known = KnownProfile()
    if command.profile is not None:
        known = open_profile(command.profile, identity)
    pictures = open_pictures(command.data or FASHION_MNIST_DIR, command.limit)
    runners = _load(command, spec)
    transform = runners[0].model.transform
    if transform.modality is not Modality.IMAGE:
        raise ConfigError(
            f"{spec.name} takes {transform.modality.noun}s; --task embed measures models of"
            " pictures"
        )
    texts = command.r.split() or [str(level) for level in runners[0].model.levels]
    schedules = parse_schedules(runners[0], texts)
    with log_step(log, f"embedding {len(pictures):,} pictures under {len(schedules)} schedules"):
        records, rows = measure(runners, schedules, pictures, command.batch)
    for name, reason in records[0].unreadable.items():
        table_console().print(f"passed over {name}: {reason}", markup=False, highlight=False)
    count = records[0].measured
    curves = {}
    for runner in runners:
        merging = runner.model.spec.merging
        of_rule = [row for row in rows if row.merging == merging]
        title = f"{spec.name} by {merging} on {count:,} pictures of {pictures.name}"
        print_table(f"{title}, {runner.device}", of_rule)
        curves[f"{spec.name} by {merging}"] = of_rule
    if command.profile is not None:
        conditions = {
            "data": pictures.name,
            "images": count,
            "unreadable": len(records[0].unreadable),
            "batch": command.batch,
            **run_conditions(runners[0]),
        }
        write_embeddings(command.profile, known, rows, identity, conditions)
    if command.plot is not None:
        plot_profiles({**curves, **beside}, command.plot, COSINE)
    return 0


def _load(command: EvaluateCommand, spec: ModelSpec) -> list[Runner]:
    """Load the model by each rule, all in the dtype in which the first one was loaded."""
    runners: list[Runner] = []
    for rule in command.rules or (spec.merging,):
        settings = command
        if runners:
            settings = command.model_copy(update={"dtype": runners[0].dtype})
        runners.append(load_runner(settings, spec.model_copy(update={"merging": rule})))
    return runners


def measure(
    runners: Sequence[Runner], schedules: Sequence[Schedule], pictures: Pictures, batch: int
) -> tuple[list[RuleRecord], list[ProfileRow]]:
    """Run all pictures under every schedule, by one rule after the other.

    Args:
        runners: of one model by several rules; speed-ups are over r=0 by the first of them.
        schedules: the first of them r=0.
        batch: pictures in one forward pass.

    Returns:
        What was recorded by each rule, and the rows of all.

    Raises:
        ConfigError: no picture can be read, or pictures changed meanwhile.
    """
    records: list[RuleRecord] = []
    rows: list[ProfileRow] = []
    with make_progress() as progress:
        task = progress.add_task("pictures", total=len(runners) * len(pictures))

        def recorded() -> None:
            progress.update(task, completed=sum(record.read for record in records))

        for runner in runners:
            records.append(new_record(runner, schedules))
            rows += _measure_rule(runner, runners[0], schedules, pictures, records, batch, recorded)
    return records, rows


def _measure_rule(
    runner: Runner,
    baseline: Runner,
    schedules: Sequence[Schedule],
    pictures: Pictures,
    records: Sequence[RuleRecord],
    batch: int,
    recorded: Callable[[], None],
) -> list[ProfileRow]:
    """Fill in the last of ``records``, and return its rows. For the others see `measure_rule`."""
    features = _Features()
    measure_rule(
        runner,
        baseline,
        schedules,
        pictures,
        records[-1],
        batch,
        recorded,
        with_patches=False,
        keep_features=features.add,
    )
    check_same_pictures(records, pictures.name, "measure again")
    spec = runner.model.spec
    rows = profile_rows(
        MergingRule(spec.merging, spec.prop_attn),
        records[-1],
        has_margin=runner.model.activation == "softmax",
    )
    return with_neighbours(rows, features.of_levels())


class _Features:
    """The pooled features of all pictures, at each level; they stay in memory."""

    def __init__(self) -> None:
        self._batches: list[Sequence[npt.NDArray[np.float32]]] = []

    def add(self, batch: Sequence[npt.NDArray[np.float32]]) -> None:
        """Add those of one batch: ``(B, D)`` for each level."""
        self._batches.append(batch)

    def of_levels(self) -> list[npt.NDArray[np.float32]]:
        """Return ``(N, D)`` for each level."""
        return [np.concatenate(parts) for parts in zip(*self._batches, strict=True)]


def with_neighbours(
    rows: Sequence[ProfileRow], features: Sequence[npt.NDArray[np.float32]]
) -> list[ProfileRow]:
    """Return ``rows`` with the recall of nearest neighbours.

    Args:
        rows: of one rule, the first of them r=0.
        features: of each row, ``(N, D)``.
    """
    exact = NeighbourRecall(features[0])
    return [
        with_recall(row, exact.of(found), exact.of_mixture(found))
        for row, found in zip(rows, features, strict=True)
    ]


def print_table(title: str, rows: Sequence[ProfileRow]) -> None:
    """Print the rows as a table."""
    table = Table(
        "r",
        "cosine with r=0 (95 %)",
        "5 % below",
        "1 % below",
        "recall@1, %",
        "recall@10, %",
        "mixed @1, %",
        "mixed @10, %",
        "tokens",
        "FLOPs",
        "images/s",
        "speed-up",
        title=title,
        caption=(
            "recall: of the nearest neighbours at r=0, those that are so at this r; mixed: where"
            " half of the embeddings are of r=0"
        ),
    )
    for row in rows:
        recalls = (row.recall_1, row.recall_10, row.mixed_recall_1, row.mixed_recall_10)
        table.add_row(
            row.r,
            with_interval(row, "cosine", 4),
            f"{row.cosine_p5:.4f}",
            f"{row.cosine_p1:.4f}",
            *("" if recall is None else f"{recall:.1f}" for recall in recalls),
            str(row.tokens),
            f"{row.relative_flops:.1%}",
            f"{row.images_per_s:.0f}",
            f"{row.speedup:.2f}x",
        )
    table_console().print(table)
