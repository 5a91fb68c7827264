"""All GPU checks on a machine that is rented for minutes: ``python -m benchmarks.gpu_day``.

Each step is a process of its own with a time limit. What it finds is in results.jsonl at once, a
row a line; log.txt has all that was printed, summary.txt the tables that come last.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_day.day import LOG, RESULTS, SUMMARY, Day, Row, read
from benchmarks.gpu_day.steps import DEFAULT_BUDGET, STEPS, choose, run_all
from benchmarks.gpu_day.summary import summarise


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    steps = "\n".join(
        f"  {step.name:9} {step.what} (at most {step.seconds:.0f} s)" for step in STEPS
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_day",
        description=__doc__,
        epilog=f"steps, in their order:\n{steps}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(os.environ.get("OUT") or "benchmarks/results/gpu_day")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps; default: all")
    parser.add_argument(
        "--dry", action="store_true", help="every step on the CPU with tiny sizes, to try the code"
    )
    parser.add_argument(
        "--tome", type=Path, metavar="PATH", help="checkout of github.com/facebookresearch/ToMe"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        help="folder of the results; default: $OUT, else %(default)s",
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=DEFAULT_BUDGET,
        metavar="SECONDS",
        help="of everything; default: %(default)s",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the day; 0 if every step ended well, whatever its rows say."""
    args = parse(arguments)
    try:
        steps = choose(args.only)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"error: {error}")
        return 2
    for name in (RESULTS, LOG, SUMMARY):
        (args.out / name).unlink(missing_ok=True)
    tome = args.tome.resolve() if args.tome else None
    day = Day("day", args.out.resolve(), args.dry, tome)

    def say(line: str) -> None:
        print(line, flush=True)

    outcomes: list[Row] = []
    try:
        outcomes = run_all(day, steps, args.budget, say)
    finally:  # whoever breaks the day off should see what there is
        rows = read(args.out)
        (args.out / SUMMARY).write_text(summarise(rows), "utf-8")
        say(f"\n{summarise(rows, short=True)}")
    return 0 if all(row["outcome"] == "ok" for row in outcomes) else 1


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the step under way is ended too
    raise SystemExit(main())
