"""`python -m benchmarks.launches`: kernel launches and bytes of a forward pass, without a GPU.

The networks run on tensors that only know their device, dtype and shape, and every operator is
counted. Bytes are those of the tensors that operators read and write, each once: what a kernel
reads twice, or keeps in a cache, is not known. What is counted of an operator:
`benchmarks/launches/kernels.py`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cases import DTYPES, MIXED, MODELS
from benchmarks.contenders import Published
from benchmarks.launches.counting import Counts
from benchmarks.launches.networks import Build, R, count, operators, ours, pairs, plain, published

MIXED_NAME = "mixed"


@dataclass(frozen=True)
class Row:
    """What one forward pass asks for.

    Attributes:
        network: ours, pairs (ours by this rule), operators (ours without our own kernels), timm or
            tome (the published code).
        r: a number, or ``mixed``.
        block: kernels of a block in the middle of the network: what the pass launches more than
            that of a network with a block less.
        launches: kernels of the whole pass.
        once: kernels that are launched once for a plan, and not again while that is kept.
        other_gb: GB read and written outside linear layers, attention included.
        linear_gb: GB read and written in linear layers, weights included.
    """

    network: str
    model: str
    dtype: str
    batch: int
    r: str
    block: int
    launches: int
    once: int
    other_gb: float
    linear_gb: float


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.add_argument(
        "--model", default="B", help=f"{', '.join(MODELS)} or a timm name; default: B"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument(
        "--r", nargs="+", default=["0", "8", "16", MIXED_NAME], help=f"numbers, or {MIXED_NAME}"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument(
        "--network",
        nargs="+",
        choices=["ours", "pairs", "operators", "timm", "tome"],
        help="default: all that are there",
    )
    parser.add_argument(
        "--tome", type=Path, metavar="PATH", help="checkout of github.com/facebookresearch/ToMe"
    )
    parser.add_argument(
        "--by-operator", action="store_true", help="a table of operators for every case"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 140)
    model = MODELS[args.model].timm if args.model in MODELS else args.model
    try:
        networks = choose(args.network, args.tome)
        cases = [
            (name, batch, r)
            for name in networks
            for batch in args.batch
            for r in args.r
            if runs(name, batch, r)
        ]
        if not timm.is_model(model):
            raise ValueError(f"timm has no model {model!r}")
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 2
    rows = []
    details = []
    for name, batch, r in track(cases, "counting", console=console, transient=True):
        row, counts = measure(name, networks[name], model, args.dtype, batch, r)
        rows.append(row)
        details.append(operator_table(row, counts))
    console.print(table(rows, model, args.dtype))
    if args.by_operator:
        console.print(*details)
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", "utf-8")
    return 0


def choose(names: Sequence[str] | None, checkout: Path | None) -> dict[str, Build]:
    """The networks that are counted, by name.

    Raises:
        ValueError: the published code is wanted, and is not there; or ``checkout`` is none of it.
    """
    found: dict[str, Build] = {"ours": ours, "pairs": pairs, "operators": operators, "timm": plain}
    if checkout is not None or "tome" in (names or ()):
        missing = Published(checkout).missing(torch.device("cuda"))
        if missing or checkout is None:
            raise ValueError(missing)
        found["tome"] = published(checkout)
    return {name: build for name, build in found.items() if names is None or name in names}


def runs(network: str, batch: int, r: str) -> bool:
    """Whether ``network`` can run such a batch, and it is not the same as another one.

    Raises:
        ValueError: ``r`` is neither a number nor ``mixed``.
    """
    if r == MIXED_NAME:
        return network in ("ours", "pairs", "operators") and batch > 1
    if not r.isdecimal():
        raise ValueError(f"r must be a number or {MIXED_NAME}, got {r!r}")
    return network != "timm" or int(r) == 0


def measure(
    network: str, build: Build, model: str, dtype: str, batch: int, r: str
) -> tuple[Row, Counts]:
    """Count one case, and the same with a block less."""
    each: R = [MIXED[image % len(MIXED)] for image in range(batch)] if r == MIXED_NAME else int(r)
    whole = count(build, model, DTYPES[dtype], batch, each)
    shorter = count(build, model, DTYPES[dtype], batch, each, depth=whole.depth - 1)
    counts = whole.counts
    row = Row(
        network=network,
        model=model,
        dtype=dtype,
        batch=batch,
        r=r,
        block=counts.launches - shorter.counts.launches,
        launches=counts.launches,
        once=whole.once.launches,
        other_gb=counts.other_bytes / 1e9,
        linear_gb=counts.linear_bytes / 1e9,
    )
    return row, counts


def table(rows: Sequence[Row], model: str, dtype: str) -> Table:
    """All cases."""
    made = Table(title=f"{model}, {dtype}: one forward pass")
    for heading in ("network", "batch", "r"):
        made.add_column(heading)
    for heading in (
        "kernels a block",
        "kernels",
        "once a plan",
        "GB outside linear layers",
        "GB in linear layers",
    ):
        made.add_column(heading, justify="right")
    for before, row in zip((None, *rows), rows, strict=False):
        if before is not None and (before.network, before.batch) != (row.network, row.batch):
            made.add_section()
        numbers: list[Any] = [
            row.block,
            row.launches,
            row.once or "",
            f"{row.other_gb:.3f}",
            f"{row.linear_gb:.3f}",
        ]
        made.add_row(row.network, str(row.batch), row.r, *map(str, numbers))
    return made


def operator_table(row: Row, counts: Counts) -> Table:
    """The operators of one case, most bytes first."""
    made = Table(title=f"{row.network}, batch {row.batch}, r={row.r}")
    made.add_column("operator")
    for heading in ("calls", "kernels", "GB read", "GB written", "linear"):
        made.add_column(heading, justify="right")
    for operator, calls in counts.by_operator().items():
        read, written = (
            sum(part) / 1e9
            for part in zip(*((call.read, call.written) for call in calls), strict=True)
        )
        kernels = sum(call.launches for call in calls)
        linear = "yes" if calls[0].linear else ""
        made.add_row(
            operator, str(len(calls)), str(kernels), f"{read:.3f}", f"{written:.3f}", linear
        )
    return made


if __name__ == "__main__":
    raise SystemExit(main())
