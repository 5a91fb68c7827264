"""What the numbers say: sentences computed from results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from research.beyond.results import Result, ratio
from research.beyond.rows import Row, base_rows
from research.beyond.ways import PAIRS, PAPER

Results = Mapping[str, Result]

# A difference counts above so many of its standard errors.
CLEAR = 2


def findings(rows: Sequence[Row], r: int, results: Results) -> Iterator[str]:
    """Yield what class losses say of ``rows``, each compared with the row of "pairs".

    Args:
        rows: of one table.
        r: as for `make_rows`.
    """
    better: list[Row] = []
    worse: list[Row] = []
    unclear: list[Row] = []
    for row in rows:
        base = base_rows(row, r)[1]
        if row.way == PAPER or row.name == base or base not in results:
            continue
        times = ratio(results[row.name], results[base], "class_loss")
        if math.isnan(times.value) or math.isnan(times.error):
            continue
        if abs(times.value - 1) <= CLEAR * times.error:
            unclear.append(row)
        elif times.value < 1:
            better.append(row)
        else:
            worse.append(row)
    if not (better or worse or unclear):
        return
    compared = len(better) + len(worse) + len(unclear)
    base = base_rows(rows[0], r)[1]
    yield (
        f"- Of {compared} rows compared with `{base}`, {len(better)} have a lower class loss by"
        f" more than {CLEAR} standard errors, {len(worse)} a higher one, and {len(unclear)}"
        f" neither. If all were even, about {compared / 20:.1f} would differ so by chance."
    )
    for title, group in (("Lower", better), ("Neither", unclear), ("Higher", worse)):
        if group:
            yield f"- **{title}:** " + "; ".join(_cell(row, r, results) for row in group) + "."


def paper_and_pairs(rs: Sequence[int], results: Results) -> Iterator[str]:
    """Yield how "pairs" compares with "paper" at each r where both are measured."""
    for r in rs:
        paper, pairs = (results.get(Row(way, r=r).name) for way in (PAPER, PAIRS))
        if paper is None or pairs is None:
            continue
        cells = []
        for what, title in (
            ("class_loss", "class loss"),
            ("patch_loss", "patch loss"),
            ("divergence", "KL"),
        ):
            times = ratio(pairs, paper, what)
            if not math.isnan(times.value):
                cells.append(f"{title} x{times.value:.2f} ± {times.error:.2f}")
        if cells:
            yield (
                f"- r={r}: `{PAIRS}` has, of `{PAPER}`, {', '.join(cells)}, at"
                f" {pairs.relative_flops:.1%} instead of {paper.relative_flops:.1%} of FLOPs."
            )


def _cell(row: Row, r: int, results: Results) -> str:
    result = results[row.name]
    base = results[base_rows(row, r)[1]]
    loss = ratio(result, base, "class_loss")
    patches = ratio(result, base, "patch_loss")
    text = f"`{row.name}` x{loss.value:.2f} ± {loss.error:.2f}"
    if math.isnan(patches.value):
        return text
    return f"{text} (patches x{patches.value:.2f} ± {patches.error:.2f})"
