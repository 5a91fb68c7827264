"""`python -m benchmarks`, end to end on the smallest case, and the arithmetic of its report."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch

import tome_core
from benchmarks import cases, contenders, forward
from benchmarks.__main__ import main
from benchmarks.bound import bound_seconds, fastest_gemm, gemms, model_macs
from benchmarks.cases import MIXED, MODELS, Case, Setup
from benchmarks.contenders import Ours, Published, Timm
from benchmarks.contenders import contenders as everyone
from benchmarks.forward import Bench, levels
from benchmarks.measure import MIN_ROUNDS, Plan, alternate
from benchmarks.report import markdown, mixed_ratio, ratio, table
from benchmarks.results import Memory, Result, Run, read_json, write_json
from tome_core.backends.cpu import kernels
from tome_core.schedule import Schedule

TINY = MODELS["Ti"]


def result(contender: str, r: str, seconds: float, batch: int = 32) -> Result:
    what = {
        "model": "vit",
        "dtype": "bf16",
        "batch": batch,
        "bound_seconds": 0.25,
        "gflop": 1.0,
        "similarity": 1.0,
    }
    return Result.of([seconds], contender=contender, r=r, **what)


@pytest.fixture(scope="module", autouse=True)
def small_products() -> Iterator[None]:
    """The products that the bound is taken from, small: a test compares no speeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forward, "gemms", partial(gemms, shapes=[(64, 64, 64)]))
        yield


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    wanted = (
        "--model Ti --dtype bf16 --batch 1 --r 0 16 --contender ours timm tome --rounds 3 --threads"
        " 1 --no-memory"
    )
    assert (
        main(
            [
                *wanted.split(),
                "--device",
                "cpu",
                "--tome",
                str(folder / "absent"),
                "--out",
                str(folder),
            ]
        )
        == 0
    )
    return folder


class TestOneRun:
    def test_rows(self, written: Path) -> None:
        run = read_json(written / "results.json")
        assert [(row.contender, row.r) for row in run.results] == [
            ("ours", "0"),
            ("ours", "16"),
            ("timm", "0"),
        ]
        for row in run.results:
            assert row.rounds == 3
            assert 0 < row.fastest <= row.seconds <= row.slowest
            assert row.similarity > 0.9
            assert row.of_bound > 0

    def test_csv_says_the_same_as_json(self, written: Path) -> None:
        with (written / "results.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        for row, expected in zip(rows, read_json(written / "results.json").results, strict=True):
            assert row["contender"] == expected.contender
            assert float(row["seconds"]) == expected.seconds
            assert float(row["images_per_s"]) == 1 / expected.seconds

    def test_flops_are_those_of_the_cost_model(self, written: Path) -> None:
        cost = tome_core.patch(timm.create_model(TINY.timm)).cost()
        for row in read_json(written / "results.json").results:
            macs = cost.macs(Schedule.parse(row.r).tokens(12, 197, 1))
            assert row.gflop == 2 * macs / 1e9

    def test_report(self, written: Path) -> None:
        report = (written / "report.md").read_text()
        rows = [line for line in report.splitlines() if re.match(r"\| 1 \| (0|16) \|", line)]
        assert len(rows) == 2
        assert "| batch | r | ours, images/s | of the bound | of timm |" in report
        assert f"* tome is skipped: {written / 'absent'} is no checkout" in report

    def test_pictures(self, written: Path) -> None:
        names = {
            path.name for path in written.glob("*.png") if path.read_bytes().startswith(b"\x89PNG")
        }
        assert names == {f"throughput-{TINY.timm}.png"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--contender theirs", "there is no contender 'theirs'"),
        ("--quick --model B", "no case is left"),
        ("--device quantum", "is no device"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 2
    assert says in capsys.readouterr().out


class TestCases:
    def test_all(self) -> None:
        found = cases.choose()
        assert len(found) == 4 * 2 * 3
        assert {case.mixed for case in found if case.batch == 32 and case.model.pixels == 224} == {
            MIXED
        }
        assert not any(case.mixed for case in found if case.batch < 32 or case.model.pixels == 384)

    def test_quick(self) -> None:
        assert [(case.dtype, case.batch) for case in cases.choose(quick=True)] == [
            ("bf16", 32),
            ("bf16", 1),
            ("fp32", 32),
        ]

    def test_mixed_batch_takes_each_r_in_turn(self) -> None:
        mixed = Case(TINY, "bf16", 32, (0,), MIXED).mixed_r
        assert len(mixed) == 32
        assert [mixed.count(r) for r in MIXED] == [7, 7, 6, 6, 6]

    def test_levels(self) -> None:
        case = Case(TINY, "bf16", 32, (0, 13), MIXED)
        for contender in (Ours(), Ours("pairs")):
            assert list(levels(contender, case)) == ["0", "4", "8", "12", "13", "16", "mixed"]
        assert list(levels(Published(None), case)) == ["0", "13"]
        assert list(levels(Timm(), case)) == ["0"]

    def test_contenders_by_family(self) -> None:
        assert [one.name for one in contenders.choose(everyone(None), ["openvino", "ours"])] == [
            "ours",
            "openvino-fp32",
            "openvino-bf16",
        ]


class TestMeasuring:
    def test_everyone_has_as_many_turns_and_neighbours_change_sides(self) -> None:
        order: list[int] = []
        calls = [lambda index=index: order.append(index) for index in range(3)]
        times = alternate(calls, Plan(rounds=4, turn_seconds=0))
        assert [len(one) for one in times] == [4, 4, 4]
        assert order == [0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 1, 0]

    def test_a_case_over_its_budget_gets_no_further_round(self) -> None:
        (times,) = alternate([lambda: None], Plan(rounds=9, turn_seconds=0, budget_seconds=0))
        assert len(times) == MIN_ROUNDS

    def test_short_calls_are_repeated(self) -> None:
        calls: list[None] = []
        alternate([lambda: calls.append(None)], Plan(rounds=1, turn_seconds=1e-2))
        assert len(calls) > 1

    def test_a_peer_that_computes_something_else_is_left_out(self) -> None:
        class Wrong(Timm):
            name = "wrong"

            def build(self, setup: Setup) -> contenders.Forward:
                return lambda images, _: -super(Wrong, self).build(setup)(images, 0)

        class Broken(Timm):
            name = "broken"

            def build(self, setup: Setup) -> contenders.Forward:
                raise RuntimeError("no compiler\nand more")

        run = Run({})
        plan = Plan(rounds=1, turn_seconds=0)
        bench = Bench(
            run, [Wrong(), Broken(), Timm()], torch.device("cpu"), 1, plan, say=lambda _: None
        )
        case = Case(TINY, "fp32", 1, (0,))
        assert list(bench.measure([case])) == [case]
        assert [row.contender for row in run.results] == ["timm"]
        assert run.skipped[0].startswith(
            "wrong is skipped: in vit_tiny_patch16_224 fp32 batch 1: its logits at r=0"
        )
        assert (
            run.skipped[1] == "broken is skipped: in vit_tiny_patch16_224 fp32 batch 1: no compiler"
        )


class TestBound:
    def test_a_batch_costs_the_sum_of_its_images(self) -> None:
        model = tome_core.patch(
            timm.create_model("vit_tiny_patch16_224", depth=3, embed_dim=48, num_heads=3)
        )
        alone = [model.cost().macs(Schedule.constant(r).tokens(3, 197, 1)) for r in (0, 8, 8)]
        assert model_macs(model, 197, [0, 8, 8]) == sum(alone)
        assert bound_seconds(3_000_000_000, 1e9) == 6.0

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_way_of_multiplying_gives_the_product(self, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        found = list(gemms(dtype, torch.device("cpu"), [(8, 32, 16)]))
        ours = (
            ["our linear 8x32x16"]
            if kernels.multiplies_fastest(torch.empty(16, 32, dtype=dtype))
            else []
        )
        names = [gemm.name for gemm in found]
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            names.insert(1, "packed linear 8x32x16")  # which oneDNN does not have then
        assert names == ["linear 8x32x16", "packed linear 8x32x16", *ours]
        plain, *others = (gemm.run() for gemm in found)
        for other in others:
            torch.testing.assert_close(other, plain)
        assert found[0].flops == 2 * 8 * 32 * 16
        assert fastest_gemm(iter(found), lambda: None) in found


class TestReport:
    def test_ratios(self) -> None:
        rows = [
            result("ours", "16", 0.5),
            result("tome", "16", 0.75),
            result("tome", "0", 2.0),
            result("timm", "0", 1.0),
        ]
        assert ratio(rows[0], rows[1]) == 1.5
        # tome at the same r, timm at r=0; the bound is 32 / 0.25 images/s.
        assert (
            table(rows).splitlines()[-1]
            == "| 32 | 16 | 64.0 | 0.50 of 128.0 | 1.50x of 42.7 | 2.00x of 32.0 |"
        )

    def test_mixed_time_is_compared_with_that_of_the_same_images(self) -> None:
        seconds = {0: 1.0, 4: 0.9, 8: 0.8, 12: 0.7, 16: 0.6}
        rows = [result("ours", str(r), taken) for r, taken in seconds.items()]
        alone = (7 * 1.0 + 7 * 0.9 + 6 * 0.8 + 6 * 0.7 + 6 * 0.6) / 32
        assert mixed_ratio([*rows, result("ours", "mixed", 1.05 * alone)]) == pytest.approx(1.05)
        assert mixed_ratio(rows) is None
        assert mixed_ratio([*rows[1:], result("ours", "mixed", 1.0)]) is None
        assert mixed_ratio([*rows, result("ours", "mixed", 1.0)], "pairs") is None

    def test_memory_and_files(self, tmp_path: Path) -> None:
        run = Run(
            {"threads": "2"}, [result("ours", "0", 1.0)], {"bf16": "linear"}, ["x is skipped: y"]
        )
        run = replace(
            run, memory=Memory("vit", "bfloat16", 32, imports=400.4, loading=500.0, load=312.0)
        )
        write_json(run, tmp_path / "run.json")
        assert read_json(tmp_path / "run.json") == run
        assert (
            "at most 312 MB more under full batches of 32 than the 400 MB after its imports"
            in markdown(run)
        )
