"""`python -m research.beyond`: ideas beyond the rule "pairs", as docs/beyond.md and JSON.

Rows are kept as soon as they are measured, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from research.bench import describe_bench, load_bench
from research.beyond.measuring import Measurer
from research.beyond.report import render
from research.beyond.results import Result, ratio, read_results, write_results
from research.beyond.rows import Row, base_rows, make_rows
from research.beyond.runs import Run
from research.beyond.selection import select
from research.beyond.speed import (
    TURNS,
    describe_speed,
    measure_speed,
    read_speed,
    speed_table,
    write_speed,
)
from research.kept_rows import About
from research.options import count, positive, row_progress, step_progress
from server.commands.datasets import open_dataset
from server.engine.device.placement import pick_device, pick_dtype, set_threads
from server.errors import ConfigError
from server.settings import ModelSettings
from server.system.files import replace_text


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(arguments)
    names = [name for name in make_rows(args.r) if args.only in name]
    if not names:
        parser.error(
            f"no row has {args.only!r} in its name; there are {', '.join(make_rows(args.r))}"
        )
    file = args.out.with_suffix(".json")
    try:
        if not args.out.parent.is_dir():
            raise ConfigError(f"there is no folder {args.out.parent} for the report")
        if args.speed:
            _measure_speed(args)
        else:
            _measure_rows(args, names, file)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "nothing is kept of times"
        if not args.speed:
            kept = f"{file} keeps the rows that are done, and the same command goes on from there"
        print(f"stopped; {kept}", file=sys.stderr)
        return 130
    return 0


def _measure_rows(args: argparse.Namespace, names: Sequence[str], file: Path) -> None:
    """Measure the rows that are asked for and not there yet, and write the report."""
    settings = ModelSettings(
        config=args.config,
        models=(),
        device=args.device,
        dtype=args.dtype,
        threads=args.threads,
    )
    data = select(open_dataset(args.data), args.skip, args.images, args.calibration)
    bench = load_bench(settings, data, args.model)
    measurer = Measurer(bench, args.images, args.batch)
    about = describe_bench(bench) | {
        "images": args.images,
        "skip": args.skip,
        "calibration": args.calibration,
        "classes": len(bench.loaded.labels),
        "prop_attn": bench.loaded.spec.prop_attn,
        "r": args.r,
        "batch": args.batch,
        "seed": args.seed,
    }
    speed = read_speed(_speed_file(args))
    results = read_results(file, about, args.fresh)
    rows = make_rows(args.r)
    missing = [rows[name] for name in names if args.fresh or name not in results]
    run(Run(measurer, args.r), about, missing, results, file)
    replace_text(args.out, render(about, results, speed))
    Console(stderr=True).print(f"{args.out} and {file} are written")


def _measure_speed(args: argparse.Namespace) -> None:
    """Time a model, print and keep the times; the next report has them."""
    set_threads(args.threads)
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device) or torch.float32
    with step_progress(args.rounds * TURNS, "turns") as advance:
        speed = measure_speed(
            args.arch, args.r, args.batch, args.rounds, device, dtype, args.seed, advance
        )
    file = _speed_file(args)
    write_speed(file, speed)
    print("\n".join([*describe_speed(speed), "", *speed_table(speed)]))
    Console(stderr=True).print(f"{file} is written; the next report has these times")


def _speed_file(args: argparse.Namespace) -> Path:
    return Path(args.out.with_suffix(".speed.json"))


def run(
    measuring: Run, about: About, rows: Sequence[Row], results: dict[str, Result], file: Path
) -> None:
    """Measure ``rows`` into ``results`` and ``file``, and say how far it is."""
    with row_progress(len(rows), about["images"]) as progress:
        for row in rows:
            progress.start(row.name)
            torch.manual_seed(about["seed"])
            result = results[row.name] = measuring.measure(row, progress.advance)
            ordered = {name: results[name] for name in make_rows(about["r"]) if name in results}
            write_results(file, about, ordered)
            progress.finish(_line(row, about["r"], results), result.seconds)


def _line(row: Row, r: int, results: dict[str, Result]) -> str:
    result = results[row.name]
    text = f"{row.name:40s} class loss {result.mean('class_loss').value:.6f}"
    base = base_rows(row, r)[1]
    if base in results:
        times = ratio(result, results[base], "class_loss")
        text += f", x{times.value:.3f} ± {times.error:.3f} of {base}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m research.beyond", description=__doc__)
    parser.add_argument(
        "--config", type=Path, help="TOML file with the model's entry; default: the bundled model"
    )
    parser.add_argument("--model", default="", help="its name; default: the first of the file")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the images; default: where Debian has Fashion-MNIST",
    )
    parser.add_argument("--images", type=positive, default=2000, help="to measure (default 2000)")
    parser.add_argument(
        "--skip",
        type=count,
        default=0,
        help="images in front of them: what is held out starts there",
    )
    parser.add_argument(
        "--calibration",
        type=positive,
        default=100,
        help="other images, on which schedules are calibrated (default 100)",
    )
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="measure only rows with this in their name"
    )
    parser.add_argument("--r", type=positive, default=16, help="of most rows (default 16)")
    parser.add_argument("--batch", type=positive, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument(
        "--threads", type=count, default=0, help="CPU threads; 0 takes one per core"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="float32"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/beyond.md"),
        help="the report; results go beside it",
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--speed",
        action="store_true",
        help="instead of losses, time a forward pass of a model with random weights",
    )
    speed.add_argument("--rounds", type=positive, default=11, help="of all in turns (default 11)")
    speed.add_argument("--arch", default="vit_small_patch16_224", help="of timm, to time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
