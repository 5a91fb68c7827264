"""``make chaos``: every scenario in its long form, with one and with three API processes, and the
report that the numbers make.

Pieces add up: ``--only sigterm --times 10`` five times is the same as fifty at once. ``--fresh``
forgets what the same scenarios found before.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.results import about
from server.engine.device.placement import pick_device
from server.hardware import usable_cores
from tests.chaos.harness import Arena
from tests.chaos.oracle import Oracle
from tests.chaos.results import Found, markdown, read, write
from tests.chaos.scenarios import SCENARIOS, Scenario


def main() -> int:
    """Run, keep, report. 0 if all bars hold."""
    args = parse()
    console = Console(width=None if Console().is_terminal else 160)
    chosen = [each for each in SCENARIOS if not args.only or each.name in args.only]
    if shutil.which("wrk") is None and any(each.name == "overload" for each in chosen):
        console.print("error: wrk is not installed; Debian's package wrk has it", style="red")
        return 2
    today = datetime.now(UTC).date().isoformat()
    run = about("tests.chaos", pick_device("cpu"), usable_cores()) | {"date": today}
    where = f"{run['device']}, {today}"
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(Path(folder))
        for scenario, workers in product(chosen, args.workers):
            known = read(args.results)
            if args.fresh:
                known.pop((scenario.name, workers), None)
            times = args.times or scenario.long
            found = replace(run_one(scenario, oracle, times, workers, console), where=where)
            console.print(
                f"{found.scenario}, {number_of_processes(workers)}: {found.times} {found.unit},"
                f" {found.lost} lost",
                style="bold",
            )
            for check in found.checks:
                console.print(f"  {check}", style=None if check.holds else "red", highlight=False)
            known[found.key] = known[found.key] + found if found.key in known else found
            order = [each.name for each in SCENARIOS]
            ordered = sorted(known.values(), key=lambda one: (order.index(one.scenario), one.key))
            write(args.results, run, ordered)
            args.report.write_text(markdown(run, ordered), "utf-8")
    return 0 if all(each.holds for each in read(args.results).values()) else 1


def number_of_processes(workers: int) -> str:
    return "1 API process" if workers == 1 else f"{workers} API processes"


def run_one(
    scenario: Scenario, oracle: Oracle, times: int, workers: int, console: Console
) -> Found:
    """One scenario, with a bar that shows how far it is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        title = f"{scenario.name}, {number_of_processes(workers)}"
        task = progress.add_task(title, total=scenario.steps(times))
        arena = Arena(
            oracle, Path(folder), times, lambda more: progress.advance(task, more), workers
        )
        return replace(asyncio.run(scenario.run(arena)), workers=workers)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", nargs="+", choices=[each.name for each in SCENARIOS], help="these scenarios"
    )
    parser.add_argument("--times", type=int, help="how often, instead of the long form's number")
    parser.add_argument(
        "--workers", nargs="+", type=int, default=[1, 3], help="numbers of API processes"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="forget what earlier runs of these scenarios found"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("docs/reliability.json"),
        help="what is found is kept here",
    )
    parser.add_argument(
        "--report", type=Path, default=Path("docs/reliability.md"), help="the table"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
