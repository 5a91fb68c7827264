"""How often the intervals of `tome-serve tune` hold: `python -m benchmarks.tuning`.

All test pictures of Fashion-MNIST are measured once, which can be interrupted. Then 500 of them are
drawn again and again, as somebody has them who tunes the bundled model: how many of the intervals
over its levels and rules hold what the other pictures show?
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.commands.agreement import agreement_interval
from server.commands.cosines import mean_cosine
from server.commands.datasets import FASHION_MNIST_DIR
from server.commands.flags import TuneCommand
from server.commands.tuning.command import begin
from server.commands.tuning.state import TuningState
from server.logs import configure_terminal


@dataclass(frozen=True)
class Cell:
    """What was measured at one level under one rule.

    Attributes:
        agrees: whether the class of each picture is that of r=0, ``(N,)``.
        cosines: of its features with those at r=0, ``(N,)``.
    """

    name: str
    agrees: npt.NDArray[np.bool_]
    cosines: npt.NDArray[np.float64]


def cells(state: TuningState) -> Iterator[Cell]:
    """Yield the levels of all rules, but r=0."""
    for rule, record in state.rules.items():
        exact = record.levels["0"]
        for r, level in record.levels.items():
            if level is not exact:
                agrees = np.equal(level.classes, exact.classes)
                yield Cell(f"{rule.label}, r={r}", agrees, np.array(level.cosines))


def holding(cell: Cell, drawn: npt.NDArray[np.bool_]) -> tuple[bool, bool]:
    """Return whether the intervals of agreement and cosine hold what the other pictures show.

    Args:
        cell: of all pictures.
        drawn: which of them are measured, ``(N,)``.
    """
    low, high = agreement_interval(cell.agrees[drawn])
    cosine = mean_cosine(cell.cosines[drawn])
    agreement_holds = low <= cell.agrees[~drawn].mean() <= high
    return bool(agreement_holds), bool(cosine.low <= cell.cosines[~drawn].mean() <= cosine.high)


def coverage(
    measured: Sequence[Cell], pictures: int, draws: int, seed: int
) -> npt.NDArray[np.bool_]:
    """Return which intervals hold, of agreement and of cosine, ``(draws, cells, 2)``."""
    generator = np.random.default_rng(seed)
    total = len(measured[0].agrees)
    found = np.empty((draws, len(measured), 2), bool)
    for draw in range(draws):
        drawn = np.zeros(total, bool)
        drawn[generator.choice(total, pictures, replace=False)] = True
        found[draw] = [holding(cell, drawn) for cell in measured]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw and print. Returns the exit code."""
    args = parse(arguments)
    args.out.mkdir(parents=True, exist_ok=True)
    configure_terminal("info")
    command = TuneCommand(
        model="fashion-mnist",
        folder=FASHION_MNIST_DIR,
        limit=args.limit,
        profile=args.out / "tuning.profile.json",
    )
    tuning = begin(command)
    tuning.measure()
    measured = list(cells(tuning.state))
    found = coverage(measured, args.pictures, args.draws, args.seed)
    total = len(measured[0].agrees)
    print(f"{args.draws} draws of {args.pictures} of {total} pictures, held against the others:")
    print("| level | agreement, % | holds, % | cosine | holds, % |")
    print("| --- | --- | --- | --- | --- |")
    for cell, holds in zip(measured, 100 * found.mean(axis=0), strict=True):
        agreement, cosine = 100 * cell.agrees.mean(), cell.cosines.mean()
        print(f"| {cell.name} | {agreement:.2f} | {holds[0]:.1f} | {cosine:.4f} | {holds[1]:.1f} |")
    for index, name in enumerate(("agreement", "cosine")):
        holds = found[:, :, index]
        share = (holds.mean(axis=1) >= 0.9).mean()
        print(f"{name}: {holds.mean():.1%} of all intervals hold; in {share:.1%} of the draws 90%")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--pictures", type=int, default=500, help="that are drawn")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--limit", type=int, default=None, help="largest number of all pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of what was measured"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
