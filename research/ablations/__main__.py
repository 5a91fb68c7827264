"""`make ablations`: the paper's ablation tables beside ours, as docs/ablations.md and JSON.

With `--twin` of a model that was trained without merging, as docs/ablations-twin.md.

Rows are kept as soon as they are measured, so an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from research.ablations.measuring import describe, measure
from research.ablations.report import render
from research.ablations.results import Result, read_results, write_results
from research.ablations.variants import VARIANTS
from research.bench import Bench, load_bench
from research.kept_rows import About
from research.options import positive, row_progress
from server.commands.datasets import open_dataset
from server.errors import ConfigError
from server.settings import ModelSettings

TWIN = Path(__file__).parents[2] / "training" / "dense.toml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m research.ablations", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the test images; default: where Debian has Fashion-MNIST",
    )
    parser.add_argument("--images", type=positive, help="only the first so many of them")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="measure only rows with this in their name"
    )
    parser.add_argument("--r", type=positive, default=16, help="of all variants (default 16)")
    parser.add_argument("--batch", type=positive, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 takes one per core")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="the report; results go beside it; default: docs/ablations.md, of the twin"
        " docs/ablations-twin.md",
    )
    parser.add_argument(
        "--twin",
        action="store_true",
        help="of a model that was trained without merging, in place of the bundled one",
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there already")
    args = parser.parse_args(arguments)
    names = [name for name in VARIANTS if args.only in name]
    if not names:
        parser.error(f"no row has {args.only!r} in its name; there are {', '.join(VARIANTS)}")
    out: Path = args.out or Path("docs/ablations-twin.md" if args.twin else "docs/ablations.md")
    file = out.with_suffix(".json")
    try:
        if not out.parent.is_dir():
            raise ConfigError(f"there is no folder {out.parent} for the report")
        # One of our two models, whatever the environment would have a server serve.
        settings = ModelSettings(
            config=TWIN if args.twin else None,
            models=(),
            device=args.device,
            dtype=args.dtype,
            threads=args.threads,
        )
        bench = load_bench(settings, open_dataset(args.data, args.images))
        about = describe(bench, args.r, args.batch, args.seed) | {"twin": args.twin}
        results = read_results(file, about, args.fresh)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        run(
            bench,
            about,
            [name for name in names if args.fresh or name not in results],
            results,
            file,
        )
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            f"stopped; {file} keeps the rows that are done, and the same command goes on from"
            " there",
            file=sys.stderr,
        )
        return 130
    out.write_text(render(about, results), "utf-8")
    Console(stderr=True).print(f"{out} and {file} are written")
    return 0


def run(
    bench: Bench, about: About, names: list[str], results: dict[str, Result], file: Path
) -> None:
    """Measure ``names`` into ``results`` and ``file``, and say how far it is."""
    with row_progress(len(names), len(bench.pixels)) as progress:
        for name in names:
            progress.start(name)
            result = results[name] = measure(
                bench,
                VARIANTS[name],
                about["r"],
                about["batch"],
                about["seed"],
                progress.advance,
            )
            write_results(
                file, about, {name: results[name] for name in VARIANTS if name in results}
            )
            text = f"{name:21s} {result.accuracy:6.2f} ± {result.error:.2f} %"
            progress.finish(text, result.seconds)


if __name__ == "__main__":
    sys.exit(main())
