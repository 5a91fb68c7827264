"""``make chaos``: every scenario in its long form, and the report that the numbers make.

Pieces add up: ``--only sigterm --times 10`` five times is the same as fifty at once. ``--fresh``
forgets what the same scenarios found before.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from datetime import UTC, datetime
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
    where = about("tests.chaos", pick_device("cpu"), usable_cores()) | {
        "date": datetime.now(UTC).date().isoformat()
    }
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(Path(folder))
        for scenario in chosen:
            known = read(args.results)
            if args.fresh:
                known.pop(scenario.name, None)
            found = run_one(scenario, oracle, args.times or scenario.long, console)
            console.print(
                f"{found.scenario}: {found.times} {found.unit}, {found.lost} lost", style="bold"
            )
            for check in found.checks:
                console.print(f"  {check}", style=None if check.holds else "red", highlight=False)
            known[found.scenario] = (
                known[found.scenario] + found if found.scenario in known else found
            )
            ordered = [known[each.name] for each in SCENARIOS if each.name in known]
            write(args.results, where, ordered)
            args.report.write_text(markdown(where, ordered), "utf-8")
    return 0 if all(each.holds for each in read(args.results).values()) else 1


def run_one(scenario: Scenario, oracle: Oracle, times: int, console: Console) -> Found:
    """One scenario, with a bar that shows how far it is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with tempfile.TemporaryDirectory() as folder, Progress(*columns, console=console) as progress:
        task = progress.add_task(scenario.name, total=scenario.steps(times))
        return asyncio.run(
            scenario.run(
                Arena(oracle, Path(folder), times, lambda more: progress.advance(task, more))
            )
        )


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--only", nargs="+", choices=[each.name for each in SCENARIOS], help="these scenarios"
    )
    parser.add_argument("--times", type=int, help="how often, instead of the long form's number")
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
