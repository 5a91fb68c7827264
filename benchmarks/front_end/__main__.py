"""`make bench-front-end`: what the HTTP front end costs, beside a model of next to no cost.

In every round each server is started, loaded with each body by wrk, and ended: ours with each
number of API processes, mosec, LitServe, and bare uvicorn as the floor. The table has requests/s
(images/s of tensors), latencies, and the CPU time of all processes of the server, of ours by kind.

    python -m benchmarks.front_end --quick
    python -m benchmarks.front_end --only ours,mosec --bodies noise,small --workers 1 2 4
    python -m benchmarks.front_end --scaling
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from benchmarks import servers
from benchmarks.front_end import contenders
from benchmarks.front_end.bodies import BODIES
from benchmarks.front_end.contenders import Contender
from benchmarks.front_end.measure import Options, measure
from benchmarks.front_end.report import Run, markdown, write_json
from benchmarks.results import about
from benchmarks.wrk import FailedRequests
from server.engine.device.placement import pick_device
from server.hardware import usable_cores

SECONDS = 8.0
WARM_SECONDS = 2.0
ROUNDS = 3
QUICK_SECONDS = 2.0
WORKERS = (1, 2, 4)
SCALING = (1, 2)  # cores, and as many API processes
PEER_PACKAGES = ("mosec", "litserve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    if shutil.which("wrk") is None:
        console.print("error: wrk is not installed; Debian's package wrk has it", style="red")
        return 2
    contents = {name: BODIES[name]() for name in args.bodies}
    runs: list[Run] = []
    failed = False
    args.logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        options = Options(args.seconds, WARM_SECONDS, Path(folder), args.logs)
        config = contenders.write_model(options.folder)
        turns = plan(args, config)
        for number in range(args.rounds):
            console.print(f"round {number + 1} of {args.rounds}", style="dim")
            for contender, cores in turns:
                try:
                    runs.extend(measure(contender, cores, contents, number, options, console))
                except (FailedRequests, servers.NotReady) as error:
                    failed = True
                    console.print(
                        f"error: {contender.title}: {error}; {args.logs} has its log",
                        style="red",
                        markup=False,
                    )
    if not runs:
        return 1
    where = about("benchmarks.front_end", pick_device("cpu"), 1) | _versions()
    descriptions = {
        name: f"{content.description}, {round(len(content.data) / 1000)} kB"
        for name, content in contents.items()
    }
    connections = {name: content.connections for name, content in contents.items()}
    report = markdown(runs, descriptions, connections, where)
    if args.output is not None:
        write_json(runs, where, args.output)
    if console.is_terminal:
        console.print(Markdown(report))
    else:
        print(report)
    return 1 if failed else 0


def plan(args: argparse.Namespace, config: Path) -> list[tuple[Contender, int]]:
    """Return the contenders of one round in their order, each with its number of cores.

    Args:
        config: models file of our server.
    """
    if args.scaling:
        return [(contenders.ours(config, count), count) for count in SCALING]
    return [
        (contender, args.cores)
        for name in args.only
        for contender in contenders.make(name, config, args.workers)
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_end", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one round of {QUICK_SECONDS:g} s and one API process, unless others are named",
    )
    parser.add_argument("--rounds", type=int, help=f"default: {ROUNDS}")
    # wrk takes whole seconds.
    parser.add_argument("--seconds", type=int, help=f"of each load; default: {SECONDS:g}")
    parser.add_argument(
        "--only",
        type=_names(contenders.NAMES),
        default=contenders.NAMES,
        metavar="NAMES",
        help=f"which of {','.join(contenders.NAMES)}",
    )
    parser.add_argument(
        "--bodies",
        type=_names(BODIES),
        default=tuple(BODIES),
        metavar="NAMES",
        help=f"which of {','.join(BODIES)}",
    )
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="API processes; default: 1 2 4"
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=usable_cores(),
        metavar="N",
        help="that server and load generator are pinned to; default: all",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="ours alone, in turns pinned to one core with one API process, and to two with two",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON of every run")
    parser.add_argument(
        "--logs",
        type=Path,
        default=Path("benchmarks/results"),
        help="folder for what the servers print; default: %(default)s",
    )
    args = parser.parse_args(arguments)
    args.rounds = args.rounds or (1 if args.quick else ROUNDS)
    args.seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS)
    args.workers = args.workers or ((1,) if args.quick else WORKERS)
    if min(args.rounds, args.cores, *args.workers) < 1 or args.seconds <= 0:
        parser.error("rounds, seconds, cores and workers must be positive")
    needed = max(SCALING) if args.scaling else args.cores
    if needed > usable_cores():
        parser.error(f"{needed} cores are needed; this process may use {usable_cores()}")
    missing = [name for name in PEER_PACKAGES if name in args.only and find_spec(name) is None]
    if missing and not args.scaling:
        parser.error(
            f"missing: {', '.join(missing)};"
            " `pip install --constraint constraints.txt --group bench` brings it;"
            " --only names those that are to be measured"
        )
    return args


def _names(allowed: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return a parser of names with commas between them."""

    def parse_names(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        unknown = [name for name in found if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"there is no {', '.join(unknown)}; there are {','.join(allowed)}"
            )
        return found

    return parse_names


def _versions() -> dict[str, str]:
    """Of the servers and what decodes."""
    packages = (*PEER_PACKAGES, "uvicorn", "pillow")
    return {name: metadata.version(name) for name in packages if find_spec(_module_of(name))}


def _module_of(package: str) -> str:
    return {"pillow": "PIL"}.get(package, package)


if __name__ == "__main__":
    sys.exit(main())
