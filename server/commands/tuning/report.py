"""What ``tome-serve tune`` says in the end: a table, a plot, the lines for the model's entry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from server.catalog.profiles import ProfileRow
from server.commands.agreement import TARGET
from server.commands.console import table_console
from server.commands.evaluate import print_cascades
from server.commands.plotting import AGREEMENT, COSINE, plot_profiles
from server.commands.tuning.rule_choice import Choice, MergingRule


@dataclass(frozen=True)
class Report:
    """A complete measurement of a model.

    Attributes:
        data: name of the folder.
        pictures: that were measured.
        unreadable: why others were passed over, by their names.
        conditions: of the measurement: device, dtype, threads, batch.
        rules: the rows of each rule.
    """

    model: str
    data: str
    pictures: int
    unreadable: Mapping[str, str]
    conditions: Mapping[str, object]
    choice: Choice
    rules: Mapping[MergingRule, Sequence[ProfileRow]]

    @property
    def rows(self) -> list[ProfileRow]:
        """The rows of all rules, those of the recommended one first."""
        chosen = self.choice.rule
        others = [row for rule, rows in self.rules.items() if rule != chosen for row in rows]
        return [*self.rules[chosen], *others]

    @property
    def metadata(self) -> dict[str, object]:
        """What the profile says beside its rows."""
        return {
            "model": self.model,
            "data": self.data,
            "images": self.pictures,
            "unreadable": len(self.unreadable),
            **self.conditions,
            "recommended": self.choice.rule._asdict(),
        }


def print_report(report: Report, profile: Path, config: Path | None) -> None:
    """Print the tables, and what to write into the entry of the model.

    Args:
        report: of the measurement.
        profile: the file that is written.
        config: the file with the entry; None for a model that has none.
    """
    named = entry_path(profile, config)
    console = table_console()
    for name, reason in report.unreadable.items():
        console.print(f"passed over {name}: {reason}", markup=False, highlight=False)
    console.print(_table(report))
    chosen = report.rules[report.choice.rule]
    print_cascades(chosen)
    for line in (*_margin_notes(chosen, report.pictures), *_advice(report, named)):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def entry_path(profile: Path, config: Path | None) -> Path:
    """Return ``profile`` as the entry in ``config`` has to name it.

    An entry names files relative to the folder of its own file, which need not be the one that the
    command runs in.
    """
    path = profile.resolve()
    if config is not None:
        folder = config.resolve().parent
        if path.is_relative_to(folder):
            return path.relative_to(folder)
    return path


def _table(report: Report) -> Table:
    device = report.conditions["device"]
    title = f"{report.model} on {report.pictures:,} pictures of {report.data}, {device}"
    table = Table("rule", "r", title=title)
    columns = _columns(report.rows)
    for heading in columns:
        table.add_column(heading)
    for heading in ("tokens", "FLOPs", "images/s", "speed-up"):
        table.add_column(heading)
    for rule, rows in report.rules.items():
        for row in rows:
            table.add_row(
                rule.label,
                row.r,
                *(with_interval(row, *fields) for fields in columns.values()),
                str(row.tokens),
                f"{row.relative_flops:.1%}",
                f"{row.images_per_s:.0f}",
                f"{row.speedup:.2f}x",
            )
        table.add_section()
    return table


def _columns(rows: Sequence[ProfileRow]) -> dict[str, tuple[str, int]]:
    """Return the field and the decimals of each column of quality that was measured."""
    columns = {
        "agreement with r=0, % (95 %)": ("agreement", 2),
        "cosine with r=0 (95 %)": ("cosine", 4),
        "cosine of patches (95 %)": ("dense_cosine", 4),
    }
    return {
        heading: (field, decimals)
        for heading, (field, decimals) in columns.items()
        if getattr(rows[0], field) is not None
    }


def with_interval(row: ProfileRow, field: str, decimals: int) -> str:
    """Return the value of a field with its 95 % confidence interval."""
    value, low, high = (getattr(row, f"{field}{end}") for end in ("", "_low", "_high"))
    return f"{value:.{decimals}f} ({low:.{decimals}f} to {high:.{decimals}f})"


def _margin_notes(rows: Sequence[ProfileRow], pictures: int) -> list[str]:
    """Return what the margins do not show, if these are too few pictures."""
    shown = [row.margin_agreement for row in rows if row.margin_agreement is not None]
    target = 100 * TARGET
    if not shown or min(shown) >= target:
        return []
    return [
        f"{pictures:,} pictures cannot show that {target:g}% keep the class of r=0 with"
        f" confidence=auto: they show {min(shown):g}%."
    ]


def _advice(report: Report, profile: Path) -> list[str]:
    """Return which rule is better, and the lines for the entry; ``profile`` is its `entry_path`."""
    choice = report.choice
    merging, prop_attn = choice.rule
    speedups = ", ".join(
        f"{rule.label} {speedup:.3f}x" for rule, speedup in choice.speedups.items()
    )
    reason = "the measurement does not show that another rule is better than that of the entry"
    if choice.certainty is not None:
        reason = f"better than the rule of the entry with {choice.certainty:.0%} certainty"
    return [
        f"Mean speed-up over all demands for quality: {speedups}.",
        f"Best for {report.model}: {choice.rule.label}; {reason}. The lines for its entry:",
        "",
        f'merging = "{merging}"',
        f"prop_attn = {str(prop_attn).lower()}",
        f'profile = "{profile}"',
    ]


def plot_report(report: Report, path: Path) -> None:
    """Draw agreement or cosine against speed-up, a curve for each rule.

    Raises:
        ConfigError: see `plot_profiles`.
    """
    curves = {rule.label: rows for rule, rows in report.rules.items()}
    has_classes = report.rows[0].agreement is not None
    plot_profiles(curves, path, AGREEMENT if has_classes else COSINE)
