"""The report: all rows by their class loss, and what the numbers say."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from research.beyond.findings import CLEAR, findings, paper_and_pairs
from research.beyond.results import Mean, Result, ratio
from research.beyond.rows import OTHER_R, Row, base_rows, make_rows
from research.beyond.schedules import BY_LOSS, NOTES
from research.beyond.speed import Speed, describe_speed, speed_table
from research.beyond.ways import WAYS
from research.kept_rows import About

Results = Mapping[str, Result]


def render(about: About, results: Results, speed: Speed | None = None) -> str:
    """Return the report as Markdown; ``speed`` is a part of it where it is measured."""
    r = about["r"]
    rows = [row for row in make_rows(r).values() if row.name in results]
    parts = ['# Ideas beyond the rule "pairs"', *map(_filled, _head(about))]
    for title, group in (
        (f"Equal schedule: r={r} in every block", [row for row in rows if row.r == r]),
        (
            f"Equal FLOPs: those of the paper's rule at r={r}",
            [row for row in rows if row.r is None],
        ),
    ):
        if group:
            parts += [f"## {title}", *_items(findings(group, r, results))]
            parts.append("\n".join(_table(group, about, results)))
    others = [row for row in rows if row.r not in (r, None)]
    if others:
        parts += ["## At several r", *_items(paper_and_pairs(sorted({r, *OTHER_R}), results))]
        parts.append("\n".join(_table(others, about, results)))
    if speed is not None:
        parts += ["## Speed", *map(_filled, describe_speed(speed))]
        parts.append("\n".join(speed_table(speed)))
    parts += ["## The rows", "\n".join(_legend(rows))]
    return "\n\n".join(parts) + "\n"


def _items(lines: Iterable[str]) -> list[str]:
    """Return one Markdown list of ``lines``, or nothing of none."""
    items = [_filled(line, "  ") for line in lines]
    return ["\n".join(items)] if items else []


def _legend(rows: Sequence[Row]) -> Iterator[str]:
    yield "| name | what it is |"
    yield "| --- | --- |"
    measured = {row.way for row in rows}
    for name, way in WAYS.items():
        if name in measured:
            yield f"| `{name}` | {way.note} |"
    for name, note in NOTES.items():
        yield f"| `{name}` | {note} |"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _head(about: About) -> Iterator[str]:
    yield (
        f"Written by `python -m research.beyond --images {about['images']} --skip {about['skip']}"
        f" --batch {about['batch']}`, with the `--config` that names model `{about['model']}` of"
        f" weights `{about['weights']}`: {about['images']:,} images of {about['data']} after the"
        f" first {about['skip']:,} ({about['device']}, {about['dtype']}, seed {about['seed']},"
        f" torch {about['torch']}). The JSON file beside it has the results of every image."
    )
    yield (
        "**What was asked.** Which way to merge changes least of what the model computes, against"
        ' the rules "paper" and "pairs", with as many tokens merged in each block, and with as many'
        " FLOPs? Every image is compared with itself at r=0. The class loss is 1 - cosine of the"
        " class token after the last block and the final norm; the patch loss is the mean of the"
        " same over all patches, each with the token that contains it; KL is the divergence of the"
        " probabilities from those at r=0. Merging in the last block changes patches alone."
    )
    yield (
        "**How to read it.** All numbers are means ± their standard errors. A ratio is that of two"
        " means over the same images, ± the standard error of the difference image by image as a"
        f" share of the second mean. A difference of more than {CLEAR} standard errors counts. Rows"
        " are compared with `paper` and `pairs` of the same r; those of equal FLOPs with"
        f" `paper r={about['r']}` and with `pairs R`. R is what makes FLOPs equal; it need not be a"
        " whole number, so that blocks may differ by one. FLOPs are relative to no merging, and"
        f" include matching. `{BY_LOSS}` is calibrated on {about['calibration']:,} other images."
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
