"""Whether `min_fidelity` is kept on pictures not measured: `python -m benchmarks.fidelity`.

All pictures run once, as by `tome-serve evaluate --task embed`. Then 500 of them are drawn again
and again, as somebody has them who measures a profile. What does `r=auto` with `min_fidelity` allow
by that profile, and is the mean cosine of the other pictures what was asked for?
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.api.contract.auto_schedules import QUALITIES
from server.catalog.profiles import ProfileRow
from server.commands.cosines import mean_cosine
from server.commands.datasets import FASHION_MNIST_DIR
from server.commands.fidelity import measure
from server.commands.flags import EvaluateCommand
from server.commands.offline import load_runner, parse_schedules, pick_model
from server.commands.row_qualities import with_cosine
from server.commands.tuning.pictures import open_pictures
from server.ipc.messages import Level
from server.logs import configure_terminal

BOUNDS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998)
_FIDELITY = QUALITIES["min_fidelity"]
_EMPTY = ProfileRow("", None, 0, 1.0, 0.0, 1.0)


@dataclass
class Bound:
    """What a bound allowed, over all draws.

    Attributes:
        least: the bound.
        allowed: levels beside r=0, in all draws.
        kept: draws in which the mean cosine over the other pictures is at least the bound for all
            levels that it allows.
        margins: by how much each of these is above it.
    """

    least: float
    allowed: int = 0
    kept: int = 0
    margins: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """What all draws have shown.

    Attributes:
        holding: whether the interval of a level holds the mean over the other pictures,
            ``(draws, levels)``.
    """

    bounds: Sequence[Bound]
    holding: npt.NDArray[np.bool_]


def draw_profiles(
    cosines: npt.NDArray[np.float64],
    pictures: int,
    draws: int,
    seed: int,
    bounds: Sequence[float] = BOUNDS,
) -> Found:
    """Draw ``pictures`` again and again, and hold their profile against the others.

    Args:
        cosines: with r=0 of each picture, ``(N, levels)``, without r=0 itself.
        bounds: values of ``min_fidelity``.
    """
    generator = np.random.default_rng(seed)
    total, levels = cosines.shape
    found = [Bound(least) for least in bounds]
    holding = np.empty((draws, levels), bool)
    for draw in range(draws):
        drawn = np.zeros(total, bool)
        drawn[generator.choice(total, pictures, replace=False)] = True
        others = cosines[~drawn].mean(axis=0)
        intervals = [mean_cosine(values) for values in cosines[drawn].T]
        low = np.array([interval.low for interval in intervals])
        high = np.array([interval.high for interval in intervals])
        holding[draw] = (low <= others) & (others <= high)
        shown = np.array([_counted(values) for values in cosines[drawn].T])
        for bound in found:
            margins = others[shown >= bound.least] - bound.least
            bound.allowed += len(margins)
            bound.kept += bool((margins >= 0).all())
            bound.margins += margins.tolist()
    return Found(found, holding)


def _counted(values: npt.NDArray[np.float64]) -> float:
    """Return what a profile of these pictures makes of ``min_fidelity``, as the server reads it."""
    row = with_cosine(_EMPTY, values)
    level = Level("1", 1, 1.0, cosine=row.cosine, cosine_low=row.cosine_low)
    counted = _FIDELITY.counted(level, runs_again=False)
    assert counted is not None
    return counted


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw and print. Returns the exit code."""
    args = parse(arguments)
    configure_terminal("info")
    given = {"config": args.config} if args.config else {}
    command = EvaluateCommand(data=args.data, task="embed", limit=args.limit, **given)
    spec = pick_model(command, command.model)
    runner = load_runner(command, spec)
    pictures = open_pictures(args.data, args.limit)
    texts = args.r.split() or [str(level) for level in runner.model.levels]
    schedules = parse_schedules(runner, texts)
    (record,), _ = measure([runner], schedules, pictures, command.batch)
    merged = list(record.levels)[1:]
    cosines = np.stack([record.levels[r].cosines for r in merged], axis=1)
    found = draw_profiles(cosines, args.pictures, args.draws, args.seed, args.bounds)
    print(
        f"{spec.name}, {args.draws} draws of {args.pictures} of {len(cosines)} pictures of"
        f" {pictures.name}, held against the others:"
    )
    print("| level | cosine | its interval holds, % |")
    print("| --- | --- | --- |")
    for index, r in enumerate(merged):
        holds = 100 * found.holding[:, index].mean()
        print(f"| {r} | {cosines[:, index].mean():.5f} | {holds:.1f} |")
    print("| min_fidelity | levels that it allows | kept in so many draws, % | least margin |")
    print("| --- | --- | --- | --- |")
    for bound in found.bounds:
        if bound.allowed:
            share = 100 * bound.kept / args.draws
            levels = bound.allowed / args.draws
            print(f"| {bound.least} | {levels:.2f} | {share:.1f} | {min(bound.margins):+.5f} |")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.fidelity", description=__doc__)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST_DIR, help="folder of pictures")
    parser.add_argument("--config", type=Path, help="models file; its first model is measured")
    parser.add_argument("--r", default="", help="schedules; default: the model's levels")
    parser.add_argument("--pictures", type=int, default=500, help="that are drawn")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--limit", type=int, default=None, help="largest number of all pictures")
    parser.add_argument(
        "--bounds", type=float, nargs="+", default=BOUNDS, help="values of min_fidelity"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
