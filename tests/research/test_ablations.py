"""`make ablations`: every variant runs, results survive a round trip, and the report says what the
numbers say.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tome_core
from research.ablations.__main__ import main
from research.ablations.report import Verdict, judge, render
from research.ablations.results import Result, difference, read_results, write_results
from research.ablations.table_parts import Claim
from research.ablations.tables import TABLES
from research.ablations.variants import DEFAULT, UNMERGED, VARIANTS, halving, late
from research.bench import Shape
from server.errors import ConfigError
from tests.server.commands.test_datasets import idx
from tests.tome_core.models import make_images, make_vit
from tome_core.matching import Kth
from tome_core.schedule import Schedule

ABOUT: dict[str, Any] = {
    "model": "small",
    "weights": "0123",
    "data": "pictures",
    "images": 400,
    "black_patches": 0.4,
    "r": 3,
    "tokens": 17,
    "blocks": 2,
    "batch": 10,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "torch": "2",
    "twin": False,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_runs(name: str, dtype: torch.dtype) -> None:
    variant = VARIANTS[name]
    model = tome_core.optimize(variant.patch(make_vit(depth=2, dtype=torch.float32)), dtype)
    images = make_images(3, dtype=torch.float32)
    schedule = variant.schedule(3, Shape(2, 17, 1))
    torch.manual_seed(0)
    trace = model.trace(images, r=schedule)
    assert trace.logits.isfinite().all()
    assert isinstance(trace.tokens, torch.Tensor) and isinstance(trace.sizes, torch.Tensor)
    left = model.token_counts(schedule, 17)[-1]
    assert trace.tokens.shape[:2] == (3, left) and (left == 17) == (name == UNMERGED)
    assert trace.sizes[:, 0].tolist() == [1] * 3
    assert trace.sizes.sum(dim=1).tolist() == [left if name.startswith("prune") else 17] * 3
    torch.manual_seed(0)
    assert torch.equal(model(images, r=schedule), trace.logits)


def test_the_default_variant_is_the_patched_model_to_the_bit() -> None:
    vit = make_vit()
    images = make_images(4)
    for r in (3, [0, 2, 5, 3]):
        assert torch.equal(
            VARIANTS[DEFAULT].patch(vit)(images, r=r), tome_core.patch(vit)(images, r=r)
        )
    assert VARIANTS[DEFAULT].patch(vit).merging == tome_core.patch(vit).merging


def test_all_other_variants_differ_from_it() -> None:
    vit = make_vit(seed=1)
    images = make_images(4)

    def logits(name: str) -> torch.Tensor:
        torch.manual_seed(0)
        return VARIANTS[name].patch(vit)(images, r=VARIANTS[name].schedule(3, Shape(3, 17, 1)))

    assert not [
        name for name in VARIANTS if name != DEFAULT and torch.equal(logits(name), logits(DEFAULT))
    ]


@pytest.mark.parametrize(
    ("r", "shape"), [(16, Shape(12, 197, 1)), (8, Shape(24, 197, 1)), (3, Shape(3, 17, 2))]
)
def test_halving_follows_the_constant_schedule(r: int, shape: Shape) -> None:
    now = shape.tokens
    targets = Schedule.constant(r).tokens(shape.depth, shape.tokens, shape.prefix)[1:]
    for halve, target in zip(halving(r, shape).wanted(shape.depth), targets, strict=True):
        choices = [now, Kth(2).remaining(now, 1, shape.prefix)]
        now = choices[halve]
        assert abs(now - target) == min(abs(choice - target) for choice in choices)
    assert now < shape.tokens


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(pixels))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(12) % 10))
    common = [
        "--data",
        str(tmp_path),
        "--threads",
        "1",
        "--batch",
        "5",
        "--out",
        str(tmp_path / "report.md"),
    ]
    assert main([*common, "--only", "unmerged"]) == 0
    first = json.loads((tmp_path / "report.json").read_text())
    assert list(first["rows"]) == [UNMERGED] and first["about"]["images"] == 12
    # A second run takes that row over and measures the others it is asked for.
    assert main([*common, "--only", "e"]) == 0
    second = json.loads((tmp_path / "report.json").read_text())
    assert list(second["rows"]) == [name for name in VARIANTS if "e" in name]
    assert second["rows"][UNMERGED] == first["rows"][UNMERGED]
    assert (
        f"Without merging ours has {second['rows'][UNMERGED]['accuracy']:.2f}"
        in (tmp_path / "report.md").read_text()
    )
    assert "of 1 rows" in capsys.readouterr().err
    assert main([*common, "--images", "5"]) == 1
    assert (
        capsys.readouterr().err.startswith("error: ")
        and "--fresh" not in (tmp_path / "report.md").read_text()
    )
    # The twin is another model: nothing is taken over.
    assert main([*common, "--only", "unmerged", "--twin"]) == 0
    twin = json.loads((tmp_path / "report.json").read_text())
    assert list(twin["rows"]) == [UNMERGED] and twin["about"]["twin"]
    assert twin["about"]["model"] == "fashion-mnist-dense"
    assert twin["about"]["weights"] != first["about"]["weights"]
    report = " ".join((tmp_path / "report.md").read_text().split())
    assert report.startswith("# The paper's ablations on a model trained without merging")
    assert (
        "It was trained without merging" in report and "was trained with merging on," not in report
    )


def _result(correct: int, wrong_first: bool = False, images: int = 400) -> Result:
    flags = np.arange(images) < correct
    return Result(flags[::-1] if wrong_first else flags, "3", 9, 0.5, 1.0)


def test_accuracy_and_errors() -> None:
    result = _result(300)
    assert result.accuracy == 75
    assert result.error == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 400))
    # The same 300 images and 20 more: only those 20 count. And the same numbers of other images:
    # all that differ do.
    points, error = difference(_result(320), result)
    assert points == 5 and error == pytest.approx(100 * math.sqrt(0.05 * 0.95 / 400))
    points, error = difference(_result(300, wrong_first=True), result)
    assert points == 0 and error == pytest.approx(100 * math.sqrt(0.5 / 400))


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "ablations.json"
    rows = {DEFAULT: _result(301), UNMERGED: _result(277, wrong_first=True)}
    assert read_results(path, ABOUT) == {}
    write_results(path, ABOUT, rows)
    kept = read_results(path, ABOUT)
    assert list(kept) == list(rows)
    for name, row in rows.items():
        assert np.array_equal(kept[name].correct, row.correct)
        assert (kept[name].schedule, kept[name].tokens, kept[name].relative_flops) == ("3", 9, 0.5)
    assert json.loads(path.read_text())["rows"][DEFAULT]["accuracy"] == 75.25
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_results_of_another_run_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "ablations.json"
    write_results(path, ABOUT, {DEFAULT: _result(300)})
    assert read_results(path, ABOUT | {"weights": "4567"}) == {}
    assert read_results(path, ABOUT | {"images": 500}) == {}
    with pytest.raises(ConfigError, match=r"400 images, more than 100.*--fresh"):
        read_results(path, ABOUT | {"images": 100})
    assert read_results(path, ABOUT | {"images": 100}, replace=True) == {}
    assert list(read_results(path, ABOUT, replace=True)) == [DEFAULT]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"about": {"images": 4}, "rows": {"default": {}}}', '{"about": 1}']
)
def test_a_file_that_is_something_else(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no results of ablations"):
        read_results(path, ABOUT)
    assert read_results(path, ABOUT, replace=True) == {}


@pytest.mark.parametrize(
    ("above", "below", "even", "verdict"),
    [
        (320, 300, False, Verdict.HOLDS),
        (300, 320, False, Verdict.FAILS),
        (302, 300, False, Verdict.UNCLEAR),
        (300, 300, False, Verdict.UNCLEAR),
        (300, 300, True, Verdict.HOLDS),
        (302, 300, True, Verdict.HOLDS),
        (320, 300, True, Verdict.FAILS),
        (300, 320, True, Verdict.FAILS),
    ],
)
def test_verdicts(above: int, below: int, even: bool, verdict: Verdict) -> None:
    claim = Claim("one above the other", DEFAULT, "greedy", "why", even)
    assert judge(claim, {DEFAULT: _result(above), "greedy": _result(below)}) is verdict
    assert judge(claim, {DEFAULT: _result(above)}) is Verdict.UNKNOWN


def _items(text: str) -> list[str]:
    items = [
        " ".join(part.split())
        for block in text.split("\n\n")
        for part in f"\n{block}".split("\n- ")[1:]
    ]
    return [item for item in items if "**" in item]


@pytest.mark.parametrize("others", [350, 300, 250])
def test_the_report_says_what_the_numbers_say(others: int) -> None:
    results = {name: _result(300 if name in (DEFAULT, UNMERGED) else others) for name in VARIANTS}
    items = _items(render(ABOUT, results))
    claims = [claim for table in TABLES for claim in table.claims]
    assert len(items) == len(claims)
    for item, claim in zip(items, claims, strict=True):
        verdict = judge(claim, results)
        assert f"**{verdict.value}**, {(300 - others) / 4:+.2f} ±" in item
        within = "lies within two standard errors" in item
        assert (claim.why in item) == (verdict in (Verdict.UNCLEAR, Verdict.FAILS) and not within)
        if verdict is Verdict.HOLDS:
            assert not within


def test_a_report_of_few_rows_or_none() -> None:
    for results in ({}, {DEFAULT: _result(300)}, {"greedy": _result(300)}):
        text = render(ABOUT, results)
        assert text.count("not measured") > 20
        assert "What merging costs" not in text


@pytest.mark.parametrize("twin", [False, True])
def test_the_report_says_how_the_model_was_trained(twin: bool) -> None:
    text = " ".join(render(ABOUT | {"twin": twin}, {}).split())
    assert ("make ablations ARGS=--twin" in text) == twin
    assert ("half of the steps by the paper's rule" in text) != twin
    assert ("It was trained without merging" in text) == twin
    assert ("docs/ablations-twin.md" in text) != twin


def test_all_rows_of_a_table_have_as_many_cells() -> None:
    text = render(ABOUT, {DEFAULT: _result(300), "pairs": _result(310)})
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == len(TABLES)
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
    assert tables[-1][0] == "| | ours | FLOPs |"


def test_the_pairs_of_the_report_are_those_that_are_served() -> None:
    assert VARIANTS["pairs"].patch(make_vit()).merging.rule == "pairs"


def test_late_merging_has_the_sum_of_constant_merging() -> None:
    assert str(late(4, Shape(4, 197, 1))) == "0,0,8,8"
    assert sum(late(4, Shape(5, 197, 1)).wanted(5)) == 16


def test_tables_hold_together() -> None:
    shown = {line.variant for table in TABLES for line in table.lines}
    assert shown == set(VARIANTS) - {UNMERGED}
    for table in TABLES:
        papers = {line.variant: line.paper for line in table.lines}
        assert all(len(paper) in (0, len(table.columns)) for paper in papers.values())
        assert len(table.unmerged) == len(table.columns)
        assert DEFAULT in papers
        for claim in table.claims:
            # The paper's own numbers bear its claims out, in the column that is most like ours.
            lead = papers[claim.above][-1] - papers[claim.below][-1]
            assert abs(lead) < 0.2 if claim.even else lead > 0
