"""The report: all rows by their class loss, and what the numbers say."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from research.beyond.results import Mean, Result, ratio
from research.beyond.rows import Row, base_rows, make_rows
from research.kept_rows import About

Results = Mapping[str, Result]


def render(about: About, results: Results) -> str:
    """Return the report as Markdown."""
    r = about["r"]
    rows = [row for row in make_rows(r).values() if row.name in results]
    equal_r = [row for row in rows if row.r == r]
    equal_flops = [row for row in rows if row.r is None]
    others = [row for row in rows if row.r not in (r, None)]
    parts = ['# Ideas beyond the rule "pairs"', *map(_filled, _head(about))]
    for title, group in (
        (f"Equal schedule: r={r} in every block", equal_r),
        (f"Equal FLOPs: those of the paper's rule at r={r}", equal_flops),
        ("At other r", others),
    ):
        if group:
            parts += [f"## {title}", "\n".join(_table(group, about, results))]
    return "\n\n".join(parts) + "\n"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _head(about: About) -> Iterator[str]:
    yield (
        f"Written by `python -m research.beyond` over {about['images']:,} images of"
        f" {about['data']} after the first {about['skip']:,}, with model `{about['model']}` of"
        f" weights `{about['weights']}` ({about['device']}, {about['dtype']}, batches of"
        f" {about['batch']}, seed {about['seed']}, torch {about['torch']}). The JSON file beside it"
        " has the results of every image."
    )


def _table(rows: Sequence[Row], about: About, results: Results) -> Iterator[str]:
    yield (
        "| row | class loss | to paper | to pairs | patch loss, to pairs | KL, to pairs |"
        " agreement % | accuracy % | FLOPs | schedule |"
    )
    yield "| --- |" + " ---: |" * 8 + " --- |"
    for row in sorted(rows, key=lambda row: _order(row, about["r"], results)):
        yield _line(row, about, results)


def _order(row: Row, r: int, results: Results) -> float:
    """Return the class loss relative to "pairs", or where that is not measured the loss."""
    result = results[row.name]
    base = results.get(base_rows(row, r)[1])
    if base is None:
        return result.mean("class_loss").value
    return ratio(result, base, "class_loss").value


def _line(row: Row, about: About, results: Results) -> str:
    result = results[row.name]
    paper, pairs = (results.get(name) for name in base_rows(row, about["r"]))
    loss = result.mean("class_loss")
    cells = [f"`{row.name}`", f"{loss.value:.6f} ± {loss.error:.6f}"]
    for base, what in (
        (paper, "class_loss"),
        (pairs, "class_loss"),
        (pairs, "patch_loss"),
        (pairs, "divergence"),
    ):
        cells.append(_times(None if base is None else ratio(result, base, what)))
    has_classes = about["classes"] > 0
    for what in ("agrees", "correct"):
        share = result.mean(what)
        cells.append(f"{share.value:.2f} ± {share.error:.2f}" if has_classes else "")
    cells += [f"{result.relative_flops:.2%}", result.schedule]
    return "| " + " | ".join(cells) + " |"


def _times(value: Mean | None) -> str:
    if value is None or math.isnan(value.value):
        return ""
    return f"{value.value:.3f} ± {value.error:.3f}"
