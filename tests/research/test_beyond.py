"""`python -m research.beyond`: what it measures, that it resumes, and that the report says what the
numbers say.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tome_core
from research.bench import Bench, Shape, load_bench
from research.beyond.__main__ import main
from research.beyond.findings import findings, paper_and_pairs
from research.beyond.measuring import Measurer
from research.beyond.report import render
from research.beyond.results import (
    FLAGS,
    LOSSES,
    Result,
    ratio,
    read_results,
    rounded,
    write_results,
)
from research.beyond.rows import Row, base_rows, make_rows
from research.beyond.runs import Run
from research.beyond.schedules import BY_LOSS, SHAPES, equal_flops, relative_flops, spread
from research.beyond.selection import select
from research.beyond.ways import PAIRS, PAPER, WAYS
from server.commands.datasets import LabelledData, open_dataset
from server.errors import ConfigError
from server.settings import ModelSettings
from tests.server.commands.test_datasets import idx
from tests.tome_core.models import make_vit
from tome_core.schedule import Schedule

ABOUT: dict[str, Any] = {
    "model": "small",
    "weights": "0123",
    "data": "pictures",
    "images": 50,
    "skip": 0,
    "calibration": 5,
    "classes": 10,
    "tokens": 17,
    "blocks": 2,
    "r": 16,
    "batch": 10,
    "seed": 0,
    "device": "cpu",
    "dtype": "float32",
    "torch": "2",
}
IMAGES = 8


def _write_images(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (14, 28, 28), np.uint8)
    (folder / "t10k-images-idx3-ubyte").write_bytes(idx(pixels))
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(14) % 10))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The bundled model, with as many images to measure and four to calibrate on."""
    folder = tmp_path_factory.mktemp("pictures")
    _write_images(folder)
    settings = ModelSettings(config=None, models=(), device="cpu", dtype="float32", threads=1)
    return load_bench(settings, select(open_dataset(folder), 2, IMAGES, 4))


def test_what_is_measured(bench: Bench) -> None:
    schedule = Schedule.constant(16)
    result = Measurer(bench, IMAGES, batch=3).measure(WAYS[PAIRS], schedule)
    mean, std = bench.loaded.mean[0], bench.loaded.std[0]
    images = (torch.from_numpy(bench.pixels[:IMAGES]).float() / 255 - mean) / std
    model = tome_core.patch(bench.vit, merging="pairs")
    with torch.inference_mode():
        exact, merged = model.trace(images, r=0), model.trace(images, r=schedule)
    cosines = F.cosine_similarity(exact.unmerge().double(), merged.unmerge().double(), dim=-1)
    np.testing.assert_allclose(result.class_loss, 1 - cosines[:, 0].numpy(), rtol=2e-3, atol=1e-6)
    patches = 1 - cosines[:, 1:].mean(dim=1).numpy()
    np.testing.assert_allclose(result.patch_loss, patches, rtol=2e-3, atol=1e-6)
    exact_p, merged_p = (trace.logits.double().softmax(dim=-1) for trace in (exact, merged))
    divergence = (exact_p * (exact_p / merged_p).log()).sum(dim=-1)
    np.testing.assert_allclose(result.divergence, divergence.numpy(), rtol=2e-3, atol=1e-6)
    agrees = exact.logits.argmax(dim=-1) == merged.logits.argmax(dim=-1)
    assert result.agrees.tolist() == agrees.tolist()
    labels = merged.logits.argmax(dim=-1).numpy() == bench.labels[:IMAGES]
    assert result.correct.tolist() == labels.tolist()
    counts = model.token_counts(schedule, 197)
    assert (result.tokens, result.schedule) == (counts[-1], "16")
    assert result.relative_flops == pytest.approx(model.cost().relative(counts), abs=1e-5)


def test_nothing_is_lost_at_r_0(bench: Bench) -> None:
    result = Measurer(bench, IMAGES, batch=8).measure(WAYS[PAPER], Schedule.constant(0))
    for what in LOSSES:
        assert getattr(result, what).max() < 1e-6
    assert result.mean("agrees") == (100, 0)
    assert result.relative_flops == 1


def test_a_schedule_by_loss_is_calibrated_on_other_images(bench: Bench) -> None:
    others = replace(bench, pixels=bench.pixels[IMAGES:], labels=bench.labels[IMAGES:])
    run = Run(Measurer(others, 0, batch=8), 16)
    counts = np.array(run.schedule(Row(PAIRS, BY_LOSS)).wanted(12))
    losses = np.array(run.block_losses[PAIRS])
    assert losses.shape == (12,)
    assert losses.min() > 0
    # Where merging costs more, fewer merge, but for rounding.
    np.testing.assert_allclose(
        counts * losses, counts.sum() / (1 / losses).sum(), atol=losses.max()
    )
    measured: list[int] = []
    Measurer(bench, IMAGES, batch=8).measure(WAYS[PAIRS], Schedule.constant(16), measured.append)
    assert sum(measured) == IMAGES


def test_a_model_without_class_token_is_refused(bench: Bench) -> None:
    without = replace(bench, loaded=replace(bench.loaded, prefix=0))
    with pytest.raises(ConfigError, match="has no class token"):
        Measurer(without, IMAGES, 8)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write_images(tmp_path)
    common = ["--data", str(tmp_path), "--threads", "1", "--batch", "5", "--calibration", "4"]
    common += ["--skip", "2", "--out", str(tmp_path / "report.md")]
    assert main([*common, "--images", "8", "--only", "paper r=16"]) == 0
    first = json.loads((tmp_path / "report.json").read_text())
    assert list(first["rows"]) == ["paper r=16"]
    assert (first["about"]["images"], first["about"]["skip"]) == (8, 2)
    # A second run takes that row over and measures the others it is asked for.
    assert main([*common, "--images", "8", "--only", "pairs R:"]) == 0
    second = json.loads((tmp_path / "report.json").read_text())
    assert list(second["rows"]) == ["paper r=16", "pairs R:-0.5", "pairs R:-0.25", "pairs R:0.5"]
    assert second["rows"]["paper r=16"] == first["rows"]["paper r=16"]
    target = second["rows"]["paper r=16"]["relative_flops"]
    for row in second["rows"].values():
        assert row["relative_flops"] == pytest.approx(target, abs=0.003)
    report = (tmp_path / "report.md").read_text()
    assert "8 images of fashion-mnist after the first 2" in report
    assert report.count("\n| `pairs R:") == 3
    assert "of 3 rows" in capsys.readouterr().err
    assert main([*common, "--images", "7"]) == 1
    assert "--fresh" in capsys.readouterr().err
    assert (tmp_path / "report.md").read_text() == report


def test_the_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "report.md"), "--threads", "1", "--rounds", "2", "--batch", "1"]
    assert main(["--speed", "--arch", "test_vit", *out]) == 0
    printed = capsys.readouterr().out
    assert [f"| {way} |" in printed for way in (PAPER, PAIRS, "nearest")] == [True] * 3
    kept = json.loads((tmp_path / "report.speed.json").read_text())
    assert {way: len(seconds) for way, seconds in kept["seconds"].items()} == {
        way: 2 for way in ("unmerged", PAPER, PAIRS, "nearest")
    }
    assert main(["--speed", "--arch", "no-such-model", *out]) == 1
    assert "cannot create 'no-such-model'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "there are paper r=16"),
        (["--images", "0"], "is not a positive number"),
        (["--skip", "-1"], "is not a number of at least 0"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_images_to_calibrate_on_are_others() -> None:
    sources = np.arange(20).reshape(20, 1, 1)
    data = LabelledData("numbers", tuple("ab"), sources, [0, 1] * 10)
    chosen = select(data, skip=3, images=10, calibration=5)
    assert isinstance(chosen.sources, np.ndarray)
    assert chosen.sources.flatten().tolist() == [*range(3, 13), 0, 1, 2, 13, 14]
    assert list(chosen.labels) == [number % 2 for number in chosen.sources.flatten()]
    with pytest.raises(ConfigError, match=r"20 images; .*lower --skip"):
        select(data, skip=11, images=10, calibration=1)
    with pytest.raises(ConfigError, match=r"20 images; .*lower --skip"):
        select(data, skip=0, images=16, calibration=5)


def paths_of(data: LabelledData) -> list[Path]:
    return [Path(source) for source in data.sources]


def test_files_of_a_folder_are_shuffled() -> None:
    paths = [Path(f"{number:03}") for number in range(40)]
    data = LabelledData("folder", tuple("ab"), paths, [0] * 20 + [1] * 20)
    chosen = select(data, skip=0, images=20, calibration=20)
    assert sorted(paths_of(chosen)) == paths
    assert 3 < sum(chosen.labels[:20]) < 17
    assert [
        label == int(path.name) // 20
        for path, label in zip(chosen.sources, chosen.labels, strict=True)
    ]


@pytest.mark.parametrize("way", [PAPER, PAIRS, "pairs-reuse"])
@pytest.mark.parametrize("name", SHAPES)
def test_flops_are_equal(name: str, way: str, bench: Bench) -> None:
    shape = bench.shape
    base = tome_core.patch(bench.vit).cost()
    paper = WAYS[PAPER]
    target = relative_flops(paper.comparisons.of(base), Schedule.constant(8), shape, paper.matcher)
    weights = SHAPES[name](shape.depth)
    cost = WAYS[way].comparisons.of(base)
    schedule = equal_flops(target, weights, cost, shape, WAYS[way].matcher)
    flops = relative_flops(cost, schedule, shape, WAYS[way].matcher)
    assert flops == pytest.approx(target, abs=0.003)
    wanted = schedule.wanted(shape.depth)
    assert min(wanted) >= 0
    if (name, way) == ("R", PAPER):
        assert wanted == (8,) * 12
    for count, weight in zip(wanted, weights, strict=True):
        assert abs(count - weight * sum(wanted) / sum(weights)) <= 1


def test_shapes() -> None:
    assert spread(SHAPES["R:-0.5"](5), 40).wanted(5) == Schedule.linear(8, -0.5).wanted(5)
    assert spread(SHAPES["spare-first-2"](4), 6).wanted(4) == (0, 0, 3, 3)
    assert spread(SHAPES["spare-last-1"](4), 6).wanted(4) == (2, 2, 2, 0)
    assert spread(SHAPES["every-second"](4), 6).wanted(4) == (3, 0, 3, 0)
    halves = spread(SHAPES["R"](6), 15).wanted(6)
    assert sum(halves) == 15
    assert set(halves) == {2, 3}
    assert all(one != other for one, other in pairwise(halves))


def test_reused_matching_is_not_paid_twice() -> None:
    cost = tome_core.patch(make_vit()).cost()
    shape = Shape(3, 17, 1)
    flops = {
        way: relative_flops(
            WAYS[way].comparisons.of(cost), Schedule.constant(2), shape, WAYS[way].matcher
        )
        for way in (PAPER, "mean-key-distance", "pairs-reuse", PAIRS, "keys-values")
    }
    assert list(flops) == sorted(flops, key=flops.__getitem__)


def test_rows() -> None:
    rows = make_rows(16)
    assert len({row.way for row in rows.values()}) == len(WAYS)
    assert all(name == row.name for name, row in rows.items())
    assert "paper R" not in rows  # it is paper r=16
    for row in rows.values():
        assert set(base_rows(row, 16)) <= set(rows)
    assert {f"{way} r={r}" for way in (PAPER, PAIRS) for r in (8, 13, 16, 20)} <= set(rows)
    assert "pairs r=7" in make_rows(7)


def _result(loss: float, spread: float = 0.2, images: int = 50) -> Result:
    losses = rounded(loss * (1 + spread * np.sin(np.arange(images))))
    flags = np.arange(images) < images // 2
    return Result(losses, losses, losses, flags, flags, "16", 5, 0.5, 1.0)


def test_results_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "beyond.json"
    rows = {"pairs r=16": _result(1e-3), "paper r=16": _result(2e-6)}
    assert read_results(path, ABOUT) == {}
    write_results(path, ABOUT, rows)
    kept = read_results(path, ABOUT)
    assert list(kept) == list(rows)
    for name, row in rows.items():
        for what in (*LOSSES, *FLAGS):
            assert np.array_equal(getattr(kept[name], what), getattr(row, what))
        again = kept[name]
        assert (again.schedule, again.tokens, again.relative_flops) == ("16", 5, 0.5)
    assert kept["paper r=16"].mean("class_loss").value == pytest.approx(2e-6, rel=0.02)
    with pytest.raises(ConfigError, match=r"differs in weights, r; .*--fresh"):
        read_results(path, ABOUT | {"weights": "4567", "r": 8})
    assert read_results(path, ABOUT | {"weights": "4567"}, replace=True) == {}


def test_a_file_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_text('{"about": {"images": 4}, "rows": {"paper r=16": {}}}')
    with pytest.raises(ConfigError, match="holds no results of ideas"):
        read_results(path, ABOUT)
    assert read_results(path, ABOUT, replace=True) == {}


def test_ratios() -> None:
    one = _result(1.0)
    two = replace(one, class_loss=2 * one.class_loss)
    assert ratio(one, one, "class_loss") == (1, 0)
    times = ratio(two, one, "class_loss")
    assert times.value == pytest.approx(2)
    error = one.class_loss.std(ddof=1) / math.sqrt(50) / one.class_loss.mean()
    assert times.error == pytest.approx(error)
    assert math.isnan(ratio(one, replace(one, class_loss=0 * one.class_loss), "class_loss").value)


def test_findings_say_what_the_numbers_say() -> None:
    pairs = _result(1e-3)
    uneven = replace(pairs, class_loss=rounded(1e-3 * (1 + np.cos(3 * np.arange(50)))))
    results = {
        "pairs r=16": pairs,
        "nearest r=16": _result(0.5e-3),
        "mean-key-distance r=16": _result(2e-3),
        "pairs-reuse r=16": uneven,
    }
    rows = [make_rows(16)[name] for name in results]
    head, lower, neither, higher = findings(rows, 16, results)
    assert "Of 3 rows compared with `pairs r=16`, 1 have a lower class loss" in head
    assert lower.startswith("- **Lower:** `nearest r=16` x0.50 ±")
    assert neither.startswith("- **Neither:** `pairs-reuse r=16` x1.0")
    assert higher.startswith("- **Higher:** `mean-key-distance r=16` x2.00 ±")
    assert list(findings(rows[:1], 16, results)) == []
    assert list(findings(rows[1:], 16, {name: results[name] for name in list(results)[1:]})) == []
    both = results | {"paper r=16": _result(4e-3)}
    (line,) = paper_and_pairs((8, 16), both)
    assert "- r=16: `pairs` has, of `paper`, class loss x0.25 ±" in line


def test_the_report_is_sorted_by_class_loss() -> None:
    results = {"pairs r=16": _result(1e-3), "nearest r=16": _result(2e-3)}
    results |= {"mean-key-distance r=16": _result(0.5e-3), "pairs R:0.5": _result(1e-3)}
    text = render(ABOUT, results)
    order = [line.split("`")[1] for line in text.splitlines() if " r=16` |" in line]
    assert order == ["mean-key-distance r=16", "pairs r=16", "nearest r=16"]
    assert "| `pairs R:0.5` | 0.001" in text
    assert "keys-values" not in text
    assert render(ABOUT, {}).startswith("# Ideas")
    without_classes = render(ABOUT | {"classes": 0}, results)
    assert "| 50.00 ± " in text
    assert "| 50.00 ± " not in without_classes
