"""Write what the profiles of the bundled model and of its twins say: `python -m training.report`.

That is the tables between the markers of README.md and training/README.md, and the plot of the
former. It measures nothing: where a profile is missing or old, the error names the command.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from server.catalog.profiles import ProfileRow, cascade_rows, cascade_speedup
from server.commands.plotting import ACCURACY, plot_profiles
from server.errors import ConfigError
from server.system.files import replace_text
from tome_core.rules import RuleName
from training.profiled import (
    CPU_TWIN,
    DENSE,
    PAPER,
    Profiled,
    check_comparable,
    read_profiled,
    read_rules,
)
from training.tables import markdown, replaced

ROOT = Path(__file__).resolve().parent.parent
PLOT = "docs/fashion-mnist.png"
README_LEVELS = ("0", "8", "13", "16", "20")
PLOTTED = ("0", "8", "13", "16", "20", "25")
COMPARED_LEVELS = ("0", "8", "13", "16", "17", "20", "15:-0.5", "16:-1")
# Of the plot: the interval of an accuracy is a point wide, and losses are smaller.
TOP_1 = replace(ACCURACY, least_height=3.0)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Run the command line on the repository in ``root``; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.report", description=__doc__)
    parser.parse_args(arguments)
    try:
        written = write(root)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"written: {', '.join(written)}")
    return 0


def write(root: Path) -> list[str]:
    """Write the plot and the tables; return the files' paths from ``root``.

    Raises:
        ConfigError: see `documents` and `plot_profiles`; then no table was written.
    """
    bundled = read_rules(root, PAPER)
    texts = documents(root, bundled)
    of_rules = {rule: [bundled[rule].row(r) for r in PLOTTED] for rule in bundled}
    curves = {
        "the paper's rule": of_rules["paper"],
        "pairs": of_rules["pairs"],
        "nearest": of_rules["nearest"],
        "the paper's rule, confidence=auto": cascade_rows(of_rules["paper"]),
    }
    plot_profiles(curves, root / PLOT, TOP_1)
    for name, text in texts.items():
        replace_text(root / name, text)
    return [PLOT, *texts]


def documents(root: Path, bundled: Mapping[RuleName, Profiled]) -> dict[str, str]:
    """Return the documents with the tables of now, by their paths from ``root``.

    Args:
        bundled: the bundled model under every rule.

    Raises:
        ConfigError: a profile of another model cannot be used, or cannot be compared with
            ``bundled``; a document cannot be read, or lacks the markers of a table.
    """
    paper = bundled["paper"]
    dense = read_rules(root, DENSE)
    cpu_twin = read_profiled(root, CPU_TWIN)
    check_comparable(paper, dense["paper"])
    tables = {
        "training/README.md": {
            "twins": twins_table(paper, dense["paper"], cpu_twin),
            "rules": rules_table(bundled),
            "dense-rules": rules_table(dense),
        },
        "README.md": {"bundled": bundled_table(paper)},
    }
    texts = {}
    for document, contents in tables.items():
        try:
            text = (root / document).read_text("utf-8")
            for name, content in contents.items():
                text = replaced(text, name, content)
        except (OSError, ConfigError) as error:
            raise ConfigError(f"{document}: {error}") from error
        texts[document] = text
    return texts


def bundled_table(paper: Profiled) -> str:
    """Return the short table: accuracy and speed of the bundled model."""
    header = ["`r`", "accuracy, %", "tokens left", "images/s", "speed-up"]
    total = paper.row("0").tokens
    rows = []
    for r in README_LEVELS:
        row = paper.row(r)
        left = f"{row.tokens} of {total}"
        speed = f"{row.images_per_s:.0f}"
        rows.append([r, f"{row.accuracy:.2f}", left, speed, _times(row.speedup)])
    return markdown(header, rows)


def twins_table(paper: Profiled, dense: Profiled, cpu_twin: Profiled) -> str:
    """Return what merging costs a model that was trained with it, and two that were not."""
    quality = ["accuracy, %", "loss"]
    header = ["`r`", "tokens left", "FLOPs"]
    for name, columns in (
        ("bundled", [*quality, "speed-up"]),
        ("dense", [*quality, "speed-up"]),
        ("twin", quality),
    ):
        header += [f"{name}: {columns[0]}", *columns[1:]]
    rows = []
    for r in COMPARED_LEVELS:
        row = paper.row(r)
        cells = [r, str(row.tokens), f"{row.relative_flops:.0%}"]
        cells += [*_quality(paper, r), _times(row.speedup)]
        cells += [*_quality(dense, r), _times(dense.row(r).speedup)]
        cells += _quality(cpu_twin, r)
        rows.append(cells)
    exact = paper.row("0")
    assert exact.accuracy_low is not None and exact.accuracy_high is not None
    interval = f"{exact.accuracy_low:.2f} to {exact.accuracy_high:.2f}"
    dtype = cpu_twin.conditions["dtype"]
    text = f"{_conditions(paper)} The 95% interval of the first accuracy is {interval}."
    if dtype != paper.conditions["dtype"]:
        text += f" `twin` was measured in {dtype}."
    return f"{text}\n\n{markdown(header, rows)}"


def rules_table(rules: Mapping[RuleName, Profiled]) -> str:
    """Return one model under every rule, and by the paper's rule with second passes at r=0."""
    paper = rules["paper"]
    header = ["`r`"]
    for name in rules:
        header += [f"`{name}`: accuracy, %", "agreement with `r=0`, %", "speed-up"]
    header += ["second passes, %", "agreement then, at least, %", "accuracy, %", "speed-up"]
    rows = []
    for r, row in paper.rows.items():
        cells = [r]
        for model in rules.values():
            each = model.row(r)
            cells += [_percent(each.accuracy), _percent(each.agreement), _times(each.speedup)]
        rows.append(cells + _cascade(row))
    return f"{_conditions(paper)}\n\n{markdown(header, rows)}"


def _conditions(model: Profiled) -> str:
    found = model.conditions
    return (
        f"{found['images']:,} images of {found['data']} in batches of {found['batch']}, each batch"
        f" at every `r` in turn; {found['device']}, {found['dtype']}, {found['threads']} threads;"
        " speed-ups are medians."
    )


def _quality(model: Profiled, r: str) -> list[str]:
    loss = round(model.loss(r), 2) + 0.0  # which makes 0 of -0
    return [f"{model.accuracy(r):.2f}", f"{loss:.2f}"]


def _cascade(row: ProfileRow) -> list[str]:
    if row.margin is None:
        return [""] * 4
    return [
        _percent(row.second_passes),
        _percent(row.margin_agreement),
        _percent(row.cascade_accuracy),
        _times(cascade_speedup(row)),
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _times(value: float) -> str:
    return f"{value:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
