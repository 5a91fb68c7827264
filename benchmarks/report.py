"""A run as Markdown: how many times as fast ours is as each peer, and how near the bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from benchmarks.cases import MIXED
from benchmarks.results import Memory, Result, Run

OURS = "ours"


def markdown(run: Run) -> str:
    """The whole report."""
    parts = ["# Speed of the forward pass", *_introduction(run)]
    for model, dtype in dict.fromkeys((result.model, result.dtype) for result in run.results):
        rows = [result for result in run.results if (result.model, result.dtype) == (model, dtype)]
        parts += [f"## {model}, {dtype}", table(rows), *_mixed_lines(rows)]
    if run.memory is not None:
        parts += ["## Memory", memory_line(run.memory)]
    parts += ["## Measured on", "\n".join(f"* {key}: {value}" for key, value in run.about.items())]
    if run.skipped:
        parts += ["## Skipped", "\n".join(f"* {line}" for line in run.skipped)]
    return "\n\n".join(parts) + "\n"


def table(rows: Sequence[Result]) -> str:
    """Ours at each batch size and r, against every peer; ``rows`` are of one model and dtype."""
    peers = list(dict.fromkeys(row.contender for row in rows if row.contender != OURS))
    lines = [
        _line(["batch", "r", "ours, images/s", "of the bound", *(f"of {peer}" for peer in peers)])
    ]
    lines.append(_line(["---"] * (4 + len(peers))))
    for batch in dict.fromkeys(row.batch for row in rows):
        case = [row for row in rows if row.batch == batch]
        ours = [row for row in case if row.contender == OURS]
        # Where ours was left out, its columns stay empty and each r that a peer ran at has a row.
        for r in dict.fromkeys(row.r for row in ours or case):
            mine = find(ours, OURS, r)
            cells = [str(batch), r]
            cells += [f"{mine.images_per_s:.1f}", bound_cell(mine)] if mine else ["", ""]
            lines.append(
                _line([*cells, *(peer_cell(mine, peer_of(case, peer, r)) for peer in peers)])
            )
    return "\n".join(lines)


def find(rows: Iterable[Result], contender: str, r: str) -> Result | None:
    """The row of ``contender`` at ``r``."""
    return next((row for row in rows if (row.contender, row.r) == (contender, r)), None)


def peer_of(rows: Sequence[Result], peer: str, r: str) -> Result | None:
    """The reference for ours at ``r``: ``peer`` at that r if it merges, else at r=0."""
    merges = any(row.contender == peer and row.r != "0" for row in rows)
    return find(rows, peer, r if merges else "0")


def ratio(ours: Result, peer: Result) -> float:
    """How many times as many images ours does in the same time."""
    return ours.images_per_s / peer.images_per_s


def bound_cell(result: Result) -> str:
    """The share of the bound, and the bound in images/s."""
    return f"{result.of_bound:.2f} of {result.batch / result.bound_seconds:.1f}"


def peer_cell(ours: Result | None, peer: Result | None) -> str:
    """The ratio, and the peer's images/s."""
    if peer is None:
        return ""
    speed = f"{peer.images_per_s:.1f}"
    return f"{ratio(ours, peer):.2f}x of {speed}" if ours else speed


def mixed_ratio(rows: Iterable[Result], contender: str = OURS) -> float | None:
    """Time of a mixed batch over that of its images in batches of one r; None if unmeasured.

    ``rows`` are of one case.
    """
    by_r = {row.r: row for row in rows if row.contender == contender}
    if "mixed" not in by_r or not {str(r) for r in MIXED} <= by_r.keys():
        return None
    batch = by_r["mixed"].batch
    alone = sum(by_r[str(MIXED[image % len(MIXED)])].seconds / batch for image in range(batch))
    return by_r["mixed"].seconds / alone


def memory_line(memory: Memory) -> str:
    """One sentence."""
    return (
        f"An engine with {memory.model} in {memory.dtype} has at most {memory.load:.0f} MB more"
        f" under full batches of {memory.batch} than the {memory.imports:.0f} MB after its imports,"
        f" and {memory.loading:.0f} MB more while it loads and warms up."
    )


def _introduction(run: Run) -> Iterator[str]:
    yield (
        "Medians of rounds in which everyone has a turn, on the same float32 images and random"
        " weights. `1.50x of 60.0`: ours does 1.5 times the 60 images/s of the peer at the same"
        " `r`, or at `r=0` if the peer cannot merge."
    )
    chosen = ", ".join(f"{dtype}: {name}" for dtype, name in run.gemms.items())
    yield (
        "The bound is the exact FLOPs of the schedule, all of the last block included, at the rate"
        f" of the fastest matrix product found, timed in the same rounds ({chosen})."
    )


def _mixed_lines(rows: Sequence[Result]) -> Iterator[str]:
    for batch in dict.fromkeys(row.batch for row in rows):
        case = [row for row in rows if row.batch == batch]
        contenders = dict.fromkeys(row.contender for row in case)
        found = {name: mixed_ratio(case, name) for name in contenders}
        ratios = [f"{share:.2f} ({name})" for name, share in found.items() if share is not None]
        if ratios:
            values = ", ".join(map(str, MIXED))
            yield (
                f"A mixed batch of {batch}, its images at r = {values} in turn, takes"
                f" {', '.join(ratios)} of the time that they take in batches of one r."
            )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
