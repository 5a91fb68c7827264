"""The day with a GPU, tried on the CPU: every step runs and writes its rows; what fails costs
itself alone.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_day import steps, wheels
from benchmarks.gpu_day.__main__ import main
from benchmarks.gpu_day.day import LOG, RESULTS, SUMMARY, Day, Row, read
from benchmarks.gpu_day.loads import Reading, between
from benchmarks.gpu_day.profile import Kernel, covered, kind_of
from benchmarks.gpu_day.steps import STEPS, Step
from benchmarks.gpu_day.summary import LIMIT, of, share_out, summarise
from tests.server.conftest import command, eventually
from tome_top.scrape import Scrape


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a dry day."""
    folder = tmp_path_factory.mktemp("day")
    # A busy machine may need more than the budget of a day.
    arguments = ["--dry", "--budget", "3000", "--out", str(folder)]
    assert main(arguments) == 0, (folder / LOG).read_text()
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    return read(folder)


class TestDry:
    def test_every_step_ends_well(self, rows: list[Row]) -> None:
        assert [(row["name"], row["outcome"]) for row in of(rows, "day")] == [
            (step.name, "ok") for step in STEPS
        ]
        assert [row["error"] for row in rows if row.get("error")] == []

    def test_files(self, folder: Path) -> None:
        assert {path.name for path in folder.iterdir()} == {RESULTS, LOG, SUMMARY}
        assert all(f"== {step.name}" in (folder / SUMMARY).read_text() for step in STEPS)

    def test_device(self, rows: list[Row]) -> None:
        measured = {row["what"]: row["value"] for row in of(rows, "device") if "value" in row}
        assert {
            "copy within the device, read and written",
            "matrix product bf16",
            "node of a graph",
        } <= set(measured)
        assert all(value > 0 for value in measured.values())

    def test_tests(self, rows: list[Row]) -> None:
        outcomes = {row["test"]: row["outcome"] for row in of(rows, "tests") if "outcome" in row}
        assert sorted(set(outcomes.values())) == ["passed", "skipped"]
        assert {row["test"] for row in of(rows, "tests") if row.get("what") == "begun"} == set(
            outcomes
        )

    def test_proof(self, rows: list[Row]) -> None:
        (row,) = of(rows, "proof")
        assert {"accelerate", "load_model", "measure_costs"} <= set(row["parts_s"])
        assert row["start_s"] > row["parts_s"]["load_model"] > 0
        assert row["judged"][0]["reason"] == "" and row["judged"][0]["found"]
        assert set(row["speedups"]) == {"0", "8"}

    def test_forward(self, rows: list[Row]) -> None:
        found = {
            (row["contender"], row["r"]): row
            for row in of(rows, "forward")
            if "images_per_s" in row
        }
        levels = ("0", "8", "16", "mixed")
        assert set(found) == {
            *((one, "0") for one in ("timm", "timm cudnn", "timm graph")),
            *((one, level) for one in ("ours", "ours graph", "operators") for level in levels),
            *(("operators graph", level) for level in levels[:3]),
        }
        assert all(row["similarity"] > 0.999 and "note" not in row for row in found.values())

    def test_profile(self, rows: list[Row]) -> None:
        for row in of(rows, "profile"):
            assert row["launches"] > 0
            assert sum(kernel["launches"] for kernel in row["kernels"]) <= row["launches"]
            assert sum(kind["launches"] for kind in row["kinds"].values()) == pytest.approx(
                row["launches"]
            )

    def test_server(self, rows: list[Row]) -> None:
        loads = [row for row in of(rows, "server") if "load" in row]
        assert [(row["load"], row["r"], row["connections"]) for row in loads] == [
            ("jpeg", "mixed", 4),
            ("pixels", "8", 1),
        ]
        for row in loads:
            assert row["decode_threads"] == "default" and len(row["metrics_s"]) == 2
            assert row["images_per_s"] > 0 and not row["failures"]
            assert 0 < row["p50_ms"] <= row["p99_ms"]
            assert 1 <= row["batch_mean"] <= 4
            assert {"parent", "api", "engine"} <= set(row["cpu"])

    def test_kernels(self, rows: list[Row]) -> None:
        mine = of(rows, "kernels")
        if any(row.get("what") == "interpreter" for row in mine):
            pytest.skip("Triton's interpreter fails here")
        timed = [row for row in mine if "us" in row]
        kernels = {
            "match",
            "merge and norm",
            "place",
            "attention",
            "attention with sizes",
            "add and norm",
        }
        assert {row["kernel"] for row in timed if row["name"] == "served"} == {
            *kernels,
            "fc1 with GELU",
        }
        assert {row["kernel"] for row in timed if not row["ours"]} >= {
            "match",
            "attention with sizes",
        }
        # The interpreter cuts off where a GPU rounds to bfloat16.
        assert all(row["us"] > 0 and row.get("deviation", 0.0) < 3 for row in timed)

    def test_compile(self, rows: list[Row]) -> None:
        assert [row["batch"] for row in of(rows, "compile")] == [2]


class TestSteps:
    def test_a_step_over_its_limit_is_ended_with_all_that_it_started(self, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        grandchild = (
            "import os, pathlib, time;"
            f" pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid())); time.sleep(600)"
        )
        child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
        log = tmp_path / "log"
        with log.open("w") as file:
            for limit in (5, 20, 80):  # seconds; a busy machine may need more until both have begun
                until = time.time() + limit
                assert steps.run_process([sys.executable, "-c", child], until, file) is None
                if pid_file.exists() and pid_file.read_text():
                    break
            # Of a process that has ended, and of one that nobody has waited for, nothing is left.
            eventually(lambda: not command(pid_file.read_text()))
            assert (
                steps.run_process(
                    [sys.executable, "-c", "raise SystemExit(3)"], time.time() + 60, file
                )
                == 3
            )

    def test_what_no_time_is_left_for_is_left_out(self, tmp_path: Path) -> None:
        said: list[str] = []
        (row,) = steps.run_all(Day("day", tmp_path), [STEPS[0]], -1, said.append)
        assert row["outcome"].startswith("left out")
        assert [row["name"] for row in read(tmp_path)] == ["device"]

    def test_what_is_left_is_shared_out_by_limits(self, tmp_path: Path) -> None:
        said: list[str] = []
        missing = [
            Step(name, "nowhere", seconds, "no such module")
            for name, seconds in (("one", 60), ("two", 20))
        ]
        steps.run_all(Day("day", tmp_path), missing, 40, said.append)
        assert "one: no such module (at most 30 s)" in said[0]
        assert "two: no such module (at most 20 s)" in said[2]

    def test_a_step_that_fails_costs_no_other(self, tmp_path: Path) -> None:
        broken = Step("broken", "nowhere", 10, "no such module")
        rows = steps.run_all(Day("day", tmp_path, dry=True), [broken, broken], 100, lambda _: None)
        assert [row["outcome"] for row in rows] == ["ended with code 1"] * 2
        assert "No module named" in (tmp_path / LOG).read_text()

    def test_unknown_steps_are_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--only", "lunch", "--out", str(tmp_path)]) == 2
        assert "no step 'lunch'" in capsys.readouterr().out
        assert [step.name for step in steps.choose(["proof", "device"])] == ["device", "proof"]


class TestRows:
    def test_a_case_that_fails_is_a_row_with_its_error(self, tmp_path: Path) -> None:
        day = Day("step", tmp_path)
        with day.case(what="division") as row:
            row["half"] = 1 / 2
            row["none"] = 1 / 0
        assert day.rows() == [
            {
                "step": "step",
                "what": "division",
                "half": 0.5,
                "error": "ZeroDivisionError: division by zero",
            }
        ]

    def test_a_line_that_was_cut_off_is_left_out(self, tmp_path: Path) -> None:
        day = Day("step", tmp_path)
        day.write(number=1)
        with (tmp_path / RESULTS).open("a") as file:
            file.write('{"step": "st')
        assert [row["number"] for row in day.rows()] == [1]

    def test_the_summary_survives_rows_of_any_kind_and_stays_short(self) -> None:
        rows: list[Row] = [
            {"step": "profile", "launches": 3},
            {"step": "proof", "error": "x" * 5000},
        ]
        rows += [
            {"step": "tests", "test": f"t{n}", "outcome": "failed", "error": "y" * 900}
            for n in range(200)
        ]
        rows += [
            {"step": "forward", "model": "B", "batch": n, "error": "z" * 500} for n in range(200)
        ]
        text = summarise(rows)
        assert (
            "no table: KeyError" in text
            and "0 passed, 200 failed" in text
            and "more errors" in text
        )
        short = summarise(
            [*rows, *({"step": "device", "what": "x" * 90, "error": "x" * 90} for _ in range(99))],
            short=True,
        )
        assert len(short) <= LIMIT
        assert all(
            f"== {step}" in short for step in ("device", "profile", "proof", "tests", "forward")
        )

    def test_what_one_table_does_not_need_is_left_to_the_others(self) -> None:
        assert share_out(1000, {"a": (100, 1.0), "b": (2000, 1.0)}) == {"a": 108, "b": 892}
        assert share_out(1000, {"a": (2000, 1.0), "b": (2000, 3.0)}) == {"a": 250, "b": 750}
        assert share_out(1000, {"a": (10, 1.0)}) == {"a": 18}


class TestServer:
    def test_what_it_did_is_a_share_of_the_time_between_the_readings_themselves(self) -> None:
        """However late they are, and those of CPU time and of metrics apart."""
        begun = Scrape.parse(
            'tome_batch_images_count{model="a"} 2\ntome_batch_images_count{model="b"} 3\n', 0.0
        )
        ended = Scrape.parse(
            "tome_batch_images_count 25\ntome_batch_images_sum 60\ntome_forward_seconds_total"
            " 0.5\n",
            0.0,
        )
        before = Reading({"api": 1.0}, 10.0, begun, 14.0, 4.0)
        after = Reading({"api": 3.0, "engine": 1.0}, 12.0, ended, 15.0, 1.0)
        found = between(before, after)
        assert found["cpu"] == {"api": 1.0, "engine": 0.5}
        assert (found["batch_mean"], found["batches_per_s"], found["forward_share"]) == (3, 20, 0.5)
        assert found["metrics_s"] == [4, 1]


def test_busy_time_counts_what_runs_at_once_once() -> None:
    kernels = [Kernel("a", 0, 10), Kernel("b", 5, 8), Kernel("c", 9, 12), Kernel("d", 20, 21)]
    assert covered(kernels) == (13, 21)
    assert covered([]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void flash::flash_fwd_kernel<cutlass::bfloat16_t>", "attention"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNN", "matrix product"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matrix product"),
        (
            (
                "void at::native::(anonymous"
                " namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>"
            ),
            "layer norm",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",
            "elementwise",
        ),
        ("void at_cuda_detail::cub::DeviceSegmentedRadixSortKernel<...>", "sort"),
        ("void at::native::indexFuncLargeIndex<float, long, unsigned int>", "scatter and index"),
        ("Memcpy DtoD (Device -> Device)", "copy"),
        (
            "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>",
            "copy",
        ),
    ],
)
def test_kernels_are_told_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


class TestWheels:
    def test_here_nothing_is_missing(self) -> None:
        assert wheels.missing() == []

    def test_what_another_machine_lacks_and_what_that_needs_in_turn(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        has = {"fastapi": "0.1", "numpy": "2.5.2", "torch": "2.11.0+cu130", "timm": "1.0.31"}
        freeze = tmp_path / "freeze"
        freeze.write_text(
            "".join(f"{name}=={version}\n" for name, version in has.items()) + "other @ file:///x\n"
        )
        wanted = {want.name: want.has for want in wheels.missing(wheels.read_freeze(freeze))}
        assert wanted["fastapi"] == "0.1" and wanted["pydantic"] is None
        assert "pydantic-core" in wanted and "starlette" in wanted
        assert not {"numpy", "torch", "timm"} & set(wanted)
        assert wheels.main(["--present", str(freeze), "--python", "3.12"]) == 1
        assert "--python-version 3.12" in capsys.readouterr().out
