"""A plot joins some schedules by a line and shows others as marks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from server.catalog.profiles import ProfileRow
from server.commands.plotting import AGREEMENT, draw_profiles


def row(r: str, accuracy: float, images_per_s: float) -> ProfileRow:
    return ProfileRow(
        r, accuracy, tokens=11, relative_flops=1, images_per_s=images_per_s, speedup=1
    )


def test_agreement_is_drawn_of_the_rows_that_have_it():
    axes = Figure().add_subplot()
    rows = [replace(row("0", 90, 100), agreement=100), row("4", 90, 120)]
    rows += [replace(row("8", 89, 200), accuracy=None, agreement=98)]
    draw_profiles(axes, {"paper": rows}, lambda row: row.images_per_s, AGREEMENT)
    line, _ = axes.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[100, 100], [200, 98]]
    assert "agreement with r=0" in axes.get_ylabel()


def test_a_line_joins_constant_r_and_other_schedules_are_marks():
    axes = Figure().add_subplot()
    rows = [
        row("0", 90, 100),
        row("16:-1", 89, 210),
        row("8", 89.5, 200),
        row("1,2", 88, 150),
        row("4", 90, 120),
    ]
    draw_profiles(axes, {"model": rows}, lambda row: row.images_per_s)
    line, marks = axes.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[100, 90], [120, 90], [200, 89.5]]
    assert line.get_linestyle() == "-"
    assert np.asarray(marks.get_xydata()).tolist() == [[210, 89], [150, 88]]
    assert marks.get_linestyle() == "None"
    assert {text.get_text() for text in axes.texts} == {"r=0", "4", "8", "16:-1", "1,2"}
    low, high = axes.get_ylim()
    assert high - low >= 6
