"""`make bench`: our forward pass against its peers and the hardware's bound, in one run.

Writes results.csv, results.json, report.md and pictures. `make bench ARGS="--quick"` takes two
minutes.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from benchmarks import cases, contenders
from benchmarks.cases import Case
from benchmarks.contenders import Contender
from benchmarks.forward import Bench, levels
from benchmarks.measure import Plan
from benchmarks.memory import measure_memory
from benchmarks.plots import draw
from benchmarks.report import markdown
from benchmarks.results import Run, about, write_csv, write_json
from server.allocator import keep_freed_memory
from server.engine.device.placement import pick_device, set_threads
from server.errors import ConfigError

QUICK_LEAVES_OUT = "compile"  # whose compiling takes longer than a quick run


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="ViT-S only, without torch.compile: about two minutes"
    )
    parser.add_argument("--model", nargs="+", choices=cases.MODELS)
    parser.add_argument("--dtype", nargs="+", choices=cases.DTYPES, help="default: fp32 bf16")
    parser.add_argument("--batch", nargs="+", type=int, help="default: 1 8 32")
    parser.add_argument(
        "--r", nargs="+", type=int, help="in place of each model's own values, and without mixed r"
    )
    parser.add_argument(
        "--contender",
        nargs="+",
        metavar="NAME",
        help="ours pairs nearest tome timm compile onnxruntime openvino",
    )
    parser.add_argument(
        "--tome", type=Path, metavar="PATH", help="checkout of github.com/facebookresearch/ToMe"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--rounds", type=int, help="default: 7; with --quick 3")
    parser.add_argument(
        "--budget", type=float, default=90, help="seconds after which a case gets no further round"
    )
    parser.add_argument(
        "--memory",
        action=argparse.BooleanOptionalAction,
        help="measure it; default: not with --quick",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for what is written"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    say = partial(console.print, style="dim", markup=False)
    try:
        device = pick_device(args.device)
        chosen = cases.choose(args.model, args.dtype, args.batch, args.r, args.quick)
        everyone = contenders.choose(contenders.contenders(args.tome), args.contender)
        args.out.mkdir(parents=True, exist_ok=True)
    except (ConfigError, ValueError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    if args.quick and not args.contender:
        everyone = [one for one in everyone if one.name != QUICK_LEAVES_OUT]
    logging.getLogger("torch.utils.cpp_extension").setLevel(
        logging.ERROR
    )  # it misses a CUDA that nobody wants here
    threads = set_threads(args.threads)
    keep_freed_memory()
    run = Run(about("benchmarks", device, threads))
    plan = Plan(args.rounds or (3 if args.quick else 7), budget_seconds=args.budget)
    started = time.monotonic()
    measure(Bench(run, everyone, device, threads, plan, say), chosen, args.out, console)
    if args.memory if args.memory is not None else not args.quick and device.type == "cpu":
        say("measuring memory")
        run.memory = measure_memory(threads)
    run.about["minutes"] = f"{(time.monotonic() - started) / 60:.1f}"
    write(run, args.out)
    console.print(Markdown(markdown(run)))
    try:
        pictures = list(draw(run.results, args.out))
    except ImportError:
        console.print(
            "There are no pictures: matplotlib is not installed; `pip install --group bench`"
            " brings it."
        )
        pictures = []
    console.print(
        "wrote",
        *(args.out / name for name in ("results.csv", "results.json", "report.md")),
        *pictures,
    )
    return 0


def measure(bench: Bench, chosen: Sequence[Case], folder: Path, console: Console) -> None:
    """Measure all cases behind a progress bar; write the results after each case."""
    columns = (
        TextColumn("turns"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    rounds = bench.plan.rounds
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(
            "turns", total=rounds * sum(turns(case, bench.contenders) for case in chosen)
        )
        bench.on_turn = partial(bar.advance, task)
        finished = 0
        for case in bench.measure(chosen):
            finished += rounds * turns(case, bench.contenders)
            bar.update(
                task, completed=finished
            )  # some may have been skipped, or their rounds cut short
            write(bench.run, folder)


def turns(case: Case, everyone: Sequence[Contender]) -> int:
    """Turns in one round of ``case``, the matrix product's included."""
    return 1 + sum(len(levels(one, case)) for one in everyone if case.dtype in one.dtypes)


def write(run: Run, folder: Path) -> None:
    """Everything but the pictures."""
    write_csv(run.results, folder / "results.csv")
    write_json(run, folder / "results.json")
    (folder / "report.md").write_text(markdown(run), "utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
