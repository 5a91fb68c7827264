"""The report: the paper's tables beside ours, and whether our numbers support its claims."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from research.ablations.results import Result, difference
from research.ablations.table_parts import Claim, Table
from research.ablations.tables import FEATURES, TABLES
from research.ablations.variants import DEFAULT, UNMERGED
from research.kept_rows import About

Results = Mapping[str, Result]

# What the training of the model means for the numbers.
WITH_MERGING = (
    "Our model is small, and was trained with merging on, half of the steps by the paper's rule,"
    " the default, and half by pairs (`training/README.md`). It meets the other alternatives"
    " untrained, which favours these two: a claim that holds here is confirmed less than by the"
    " paper's model, one that does not is contradicted more. `docs/ablations-twin.md` has the same"
    " of a model that was trained without merging."
)
WITHOUT_MERGING = (
    "Our model is small. It was trained without merging (`training/README.md`), as were most of"
    " the paper's, so it meets every alternative untrained and none is favoured."
    " `docs/ablations.md` has the same of the bundled model, which was trained with merging on."
)


class Verdict(Enum):
    """What our numbers say of a claim."""

    HOLDS = "holds"
    UNCLEAR = "too close to tell"
    FAILS = "does not hold"
    UNKNOWN = "not measured"


def judge(claim: Claim, results: Results) -> Verdict:
    """Whether ``claim`` holds: a difference counts above two of its standard errors."""
    if claim.above not in results or claim.below not in results:
        return Verdict.UNKNOWN
    points, error = difference(results[claim.above], results[claim.below])
    clear = abs(points) > 2 * error
    if claim.even:
        return Verdict.FAILS if clear else Verdict.HOLDS
    if not clear:
        return Verdict.UNCLEAR
    return Verdict.HOLDS if points > 0 else Verdict.FAILS


def render(about: About, results: Results) -> str:
    """The report as Markdown."""
    model = "a model trained without merging" if about["twin"] else "the bundled model"
    parts = [f"# The paper's ablations on {model}", *map(_filled, _head(about, results))]
    for table in TABLES:
        parts += [f"## {table.title}", "\n".join(_rows(table, results)), _filled(table.note)]
        if table.claims:
            items = [_filled(_item(claim, table, results), "  ") for claim in table.claims]
            parts.append("\n".join(items))
    return "\n\n".join(parts) + "\n"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _head(about: About, results: Results) -> Iterator[str]:
    command = "make ablations ARGS=--twin" if about["twin"] else "make ablations"
    yield (
        f"Written by `{command}` over {about['images']:,} images of {about['data']} at"
        f" r={about['r']}, with model `{about['model']}` of weights `{about['weights']}`"
        f" ({about['device']}, {about['dtype']}, batches of {about['batch']}, seed {about['seed']},"
        f" torch {about['torch']}). The JSON file beside it has the result of every image."
    )
    verdicts = Counter(judge(claim, results) for table in TABLES for claim in table.claims)
    counts = ", ".join(
        f"{verdict.value} ({verdicts[verdict]})" for verdict in Verdict if verdicts[verdict]
    )
    yield f"**The paper's {verdicts.total()} claims on ours:** {counts}."
    yield (
        "**How to read it.** The paper's numbers (arXiv 2210.09461) are accuracy on ImageNet-1k,"
        " for the most part of a ViT-L/16 pre-trained by MAE, not trained with merging, without"
        " proportional attention, at r=8 in 24 blocks. Ours are accuracy ± its standard error"
        " (binomial). In brackets stands the difference from the default, the bold row; ours ± its"
        " standard error, from the same images one by one. A difference of more than two standard"
        " errors counts, which one in twenty reaches by chance. A likely reason is our reading, not"
        " measured. FLOPs are relative to no merging. Speed is not compared here: `make bench`"
        " measures it."
    )
    yield (
        f"**What is different.** {WITHOUT_MERGING if about['twin'] else WITH_MERGING} Of all"
        f" patches of our pictures {about['black_patches']:.0%} are entirely black."
    )
    if DEFAULT in results and UNMERGED in results:
        plain = results[UNMERGED]
        merged = results[DEFAULT]
        points, error = difference(merged, plain)
        yield (
            f"**What merging costs.** Without merging ours has {plain.accuracy:.2f} ±"
            f" {plain.error:.2f}, with the default, which leaves {merged.tokens} of"
            f" {about['tokens']} tokens, {merged.accuracy:.2f} ± {merged.error:.2f}: a difference"
            f" of {points:+.2f} ± {error:.2f} points, in the paper"
            f" {_paper_change(FEATURES, DEFAULT):+.2f}."
        )


def _rows(table: Table, results: Results) -> Iterator[str]:
    header = ["", *(f"paper, {column}" for column in table.columns), "ours", "FLOPs"]
    yield _row(header)
    yield "| --- |" + " ---: |" * (len(header) - 1)
    default = next(line for line in table.lines if line.variant == DEFAULT)
    blank = (None,) * len(table.columns)
    for line in table.lines:
        paper = [
            _paper_cell(value, base)
            for value, base in zip(line.paper or blank, default.paper or blank, strict=True)
        ]
        yield _row([line.label, *paper, *_our_cells(line.variant, results)])


def _row(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def _paper_cell(value: float | None, default: float | None) -> str:
    if value is None or default is None:
        return ""
    digits = 1 if value == round(value, 1) and default == round(default, 1) else 2
    return f"{value:.{digits}f}" + ("" if value == default else f" ({value - default:+.{digits}f})")


def _our_cells(variant: str, results: Results) -> tuple[str, str]:
    """The accuracy with its difference from the default, and the FLOPs."""
    if variant not in results:
        return "not measured", ""
    result = results[variant]
    cell = f"{result.accuracy:.2f} ± {result.error:.2f}"
    if variant != DEFAULT and DEFAULT in results:
        points, error = difference(result, results[DEFAULT])
        cell += f" ({points:+.2f} ± {error:.2f})"
    return cell, f"{result.relative_flops:.1%}"


def _item(claim: Claim, table: Table, results: Results) -> str:
    """One list item: the verdict, the numbers behind it, and a remark where it fails."""
    verdict = judge(claim, results)
    text = f"- {claim.text[0].upper()}{claim.text[1:]}: **{verdict.value}**"
    if verdict is Verdict.UNKNOWN:
        return f"{text}."
    points, error = difference(results[claim.above], results[claim.below])
    paper = _paper_change(table, claim.below) - _paper_change(table, claim.above)
    text += f", {points:+.2f} ± {error:.2f} points; the paper {-paper:+.2f}."
    if verdict is Verdict.HOLDS:
        return text
    if abs(points + paper) <= 2 * error:
        return f"{text} The paper's difference lies within two standard errors of ours, too."
    if UNMERGED in results:
        change, change_error = difference(results[claim.below], results[UNMERGED])
        text += (
            f" Against no merging the lower row has {change:+.2f} ± {change_error:.2f} points in"
            f" ours, {_paper_change(table, claim.below):+.2f} in the paper."
        )
    return f"{text} A likely reason: {claim.why}"


def _paper_change(table: Table, variant: str) -> float:
    """The change against no merging that the paper reports for ``variant``."""
    value = next(line.paper for line in table.lines if line.variant == variant)[-1]
    assert value is not None
    return value - table.unmerged[-1]
