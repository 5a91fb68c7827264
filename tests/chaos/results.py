"""What a scenario found: how often something was done, what was lost, and which bars hold. Pieces
of a run add up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

Key: TypeAlias = tuple[str, int]  # a scenario, and the number of API processes

HEAD = (
    "# Reliability",
    "",
    "Fault injection, written by `make chaos`; every row is a scenario of `tests/chaos`. *Lost*",
    "are requests that got no answer or another request's answer, or that client and `/metrics`",
    "count differently; but for unanswered ones of a process that the scenario itself ends. Of",
    "several runs the worst value counts.",
    "",
)
TABLE_HEAD = (
    "| scenario | API processes | size | lost | checks (with their bars) | measured on |",
    "| --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Check:
    """One bar: ``value`` must be at ``most``, or at ``least``, ``limit``. Of several pieces the
    worst value counts.

    Attributes:
        timed: it says something on a quiet machine only.
    """

    what: str
    value: float
    bound: Literal["most", "least"]
    limit: float
    unit: str = ""
    timed: bool = False

    @property
    def holds(self) -> bool:
        return self.value <= self.limit if self.bound == "most" else self.value >= self.limit

    @property
    def is_zero(self) -> bool:
        """Whether nothing was allowed, and nothing happened."""
        return self.bound == "most" and self.value == self.limit == 0

    def worse(self, other: Check) -> Check:
        pick = max if self.bound == "most" else min
        return pick(self, other, key=lambda check: check.value)

    def __str__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.what}: {self.value:.4g}{unit} (at {self.bound} {self.limit:g})"


@dataclass(frozen=True)
class Found:
    """What one scenario, or one piece of it, gave.

    Attributes:
        done: what was done, in a few words.
        times: how often, in ``unit``.
        lost: requests that got no answer, or a wrong one, or that client and server count
            differently.
        workers: API processes of the server.
        where: the machine, and the day.
    """

    scenario: str
    done: str
    times: int
    unit: str
    lost: int
    checks: tuple[Check, ...] = ()
    workers: int = 1
    where: str = ""

    @property
    def key(self) -> Key:
        """What pieces that add up have in common."""
        return self.scenario, self.workers

    @property
    def holds(self) -> bool:
        return not self.lost and all(check.holds for check in self.checks)

    def __add__(self, other: Found) -> Found:
        """Both pieces together."""
        checks = {check.what: check for check in self.checks}
        for check in other.checks:
            checks[check.what] = check.worse(checks[check.what]) if check.what in checks else check
        return replace(
            other,
            times=self.times + other.times,
            lost=self.lost + other.lost,
            checks=tuple(checks.values()),
        )


def read(path: Path) -> dict[Key, Found]:
    """What earlier pieces found."""
    rows = json.loads(path.read_text("utf-8"))["scenarios"] if path.exists() else []
    found = [
        Found(**{**row, "checks": tuple(Check(**check) for check in row["checks"])}) for row in rows
    ]
    return {one.key: one for one in found}


def write(path: Path, about: dict[str, Any], found: Iterable[Found]) -> None:
    """Keep all that was found, for pieces that follow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"about": about, "scenarios": [asdict(one) for one in found]}
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def markdown(about: dict[str, Any], found: Iterable[Found]) -> str:
    """The report."""
    rows = [
        f"| {one.done} | {one.workers} | {one.times:,} {one.unit} | {one.lost}"
        f" | {checks_cell(one.checks)} | {one.where} |"
        for one in found
    ]
    last = "; ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([*HEAD, f"The latest run: {last}.", "", *TABLE_HEAD, *rows]) + "\n"


def checks_cell(checks: Iterable[Check]) -> str:
    """The cell of a scenario: what had to be zero and is, as a list of names; then the others."""
    zero = [check.what for check in checks if check.is_zero]
    lines = [f"none: {', '.join(zero)}"] if zero else []
    for check in checks:
        if not check.is_zero:
            lines.append(str(check) if check.holds else f"{check} **missed**")
    return "<br>".join(lines) or "-"
