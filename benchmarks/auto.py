"""`make bench-auto`: r=auto on a real server under open-loop Poisson load, and its predictions.

Our server with random weights of a fixed seed takes images from `tome_load` on the same machine.
First its capacity at r=16 and at r=0 (closed loop); all rates and the deadline, ten times what a
full batch at r=16 takes, follow from these. Then, in turn: r=auto, r=0 and r=16 at a rate that r=0
cannot bear; r=auto at half of what r=0 can bear; mixed r for the errors of the predictions; r=16
for the speed-up that the server shows, which is compared with batches at r=0 and r=16 in turns,
without a server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import servers
from benchmarks.checkpoints import write_random_model
from benchmarks.measure import Plan, alternate
from benchmarks.results import about
from server.catalog.profiles import read_accuracies
from server.commands.offline import load_runner, pick_model
from server.engine.device.placement import pick_device
from server.hardware import usable_cores
from server.settings import ModelSettings
from tome_core.schedule import Schedule
from tome_load.pictures import generate_jpeg
from tome_load.report import LoadReport
from tome_load.run import run_load
from tome_load.spec import LoadSpec
from tome_load.uploads import Upload

PORT = 8127
BATCH = 32
LEVELS = (0, 4, 8, 12, 16)
BATCH_TIMES = 10


@dataclass(frozen=True)
class Open:
    """One open loop. Shares are of all requests; ``step`` is between adjacent windows of 5 s."""

    name: str
    rate: float
    seconds: float
    in_time: float
    refused: float
    p50_ms: float
    p99_ms: float
    mean_r: float
    step: float
    accuracy: float | None


@dataclass(frozen=True)
class Predictions:
    """Prediction errors of batches: their number, and the shares within 15% and 40%."""

    batches: float
    within_15: float
    within_40: float


class Bench:
    """One server, its capacity, and the loads that it gets."""

    def __init__(
        self, url: str, connections: int, accuracy: dict[str, float], console: Console
    ) -> None:
        self.url = url
        self.connections = connections
        self.accuracy = accuracy
        self.console = console
        self.uploads = (Upload("photograph.jpg", generate_jpeg()),)

    def capacity(self, r: str, seconds: float) -> float:
        """Images/s of a closed loop at ``r``."""
        report = self._run(r=(r,), connections=self.connections, duration=seconds, warmup=3.0)
        self.console.print(f"capacity at r={r}: {report.answered_per_s:.1f} images/s", style="dim")
        return report.answered_per_s

    def open(self, name: str, r: str, rate: float, seconds: float, deadline: float) -> Open:
        """An open loop at ``rate`` images/s, each with ``deadline`` seconds."""
        report = self._run(
            r=(r,), rate=rate, duration=seconds, warmup=10.0, deadline_ms=1000 * deadline
        )
        found = Open(
            name=name,
            rate=rate,
            seconds=seconds,
            in_time=report.good_share,
            refused=sum(count for code, count in report.outcomes.items() if code == "503")
            / report.requests,
            p50_ms=report.response.p50 if report.response else 0.0,
            p99_ms=report.response.p99 if report.response else 0.0,
            mean_r=report.r_mean or 0.0,
            step=max(steps(report), default=0.0),
            accuracy=self._accuracy(report),
        )
        self.console.print(
            f"{name}: {found.in_time:.1%} in time, mean r {found.mean_r:.1f}", style="dim"
        )
        return found

    def predictions(self, r: tuple[str, ...], seconds: float) -> Predictions:
        """The errors of the batches of a closed loop whose requests draw their r from ``r``."""
        before = self._series()
        self._run(r=r, connections=self.connections, duration=seconds)
        after = self._series()

        def batches(bucket: str) -> float:
            return after[f"tome_prediction_error_ratio_bucket{bucket}"] - before.get(
                f"tome_prediction_error_ratio_bucket{bucket}", 0.0
            )

        count = batches("+Inf")
        return Predictions(count, batches("0.15") / count, batches("0.4") / count)

    def speedup(self, seconds: float) -> tuple[float, float]:
        """The server's exported speed-up at r=16, beside the measured one.

        The first is the ratio of the two counters over a load at r=16 alone. The second is that of
        the forward time of an image in such a load at r=0 and in that at r=16.
        """
        shown = 0.0
        taken = {}
        for r in ("0", "16"):
            before = self._series()
            self._run(r=(r,), connections=self.connections, duration=seconds)
            after = self._series()
            plain, forward, images = (
                after[f"tome_{name}"] - before.get(f"tome_{name}", 0.0)
                for name in (
                    "r0_equivalent_seconds_total",
                    "forward_seconds_total",
                    "batch_images_sum",
                )
            )
            shown = plain / forward
            taken[r] = forward / images
        return shown, taken["0"] / taken["16"]

    def _run(self, **load: Any) -> LoadReport:
        return asyncio.run(run_load(LoadSpec(url=self.url, uploads=self.uploads, **load)))

    def _series(self) -> dict[str, float]:
        """The samples of /metrics by name (and bucket, for histograms) of the one model."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text):
            for sample in family.samples:
                found[sample.name + sample.labels.get("le", "")] = sample.value
        return found

    def _accuracy(self, report: LoadReport) -> float | None:
        """What the profile expects of the schedules used."""
        if not set(report.r_used) <= set(self.accuracy) or not report.answered:
            return None
        return sum(self.accuracy[r] * count for r, count in report.r_used.items()) / report.answered


def steps(report: LoadReport) -> list[float]:
    """By how much the mean r differs between windows of 5 s that follow each other.

    Without the last one: some of its requests run after the last arrival, when nobody waits behind
    them.
    """
    means = [window.r_mean for window in report.windows[:-1] if window.r_mean is not None]
    return [abs(after - before) for before, after in itertools.pairwise(means)]


def offline_speedup(config: Path, r: int, threads: int) -> float:
    """Ratio of a full batch's time at r=0 to that at ``r``: medians of turns, without HTTP."""
    settings = ModelSettings(config=config, threads=threads)
    runner = load_runner(settings, pick_model(settings, ""))
    calls = [partial(runner.seconds, [Schedule.constant(one)] * BATCH) for one in (0, r)]
    plain, merged = (
        statistics.median(times) for times in alternate(calls, Plan(rounds=9, turn_seconds=0.6))
    )
    return plain / merged


def measure(
    args: argparse.Namespace, config: Path, accuracy: dict[str, float], console: Console
) -> dict[str, Any]:
    """Everything that ``args.parts`` names."""
    found: dict[str, Any] = {"connections": args.connections}
    settings = {"threads": args.threads, "max_batch": BATCH, "levels": ",".join(map(str, LEVELS))}
    with servers.ours(config, PORT, **settings) as url:
        bench = Bench(url, args.connections, accuracy, console)
        if "load" in args.parts:
            fast = bench.capacity("16", args.capacity_seconds)
            exact = bench.capacity("0", args.capacity_seconds)
            deadline = BATCH_TIMES * BATCH / fast
            found |= {"capacity_16": fast, "capacity_0": exact, "deadline_ms": 1000 * deadline}
            found["open"] = [
                asdict(bench.open(name, r, rate, seconds, deadline))
                for name, r, rate, seconds in (
                    ("r=auto", "auto", 0.9 * fast, args.seconds),
                    ("r=0", "0", 0.9 * fast, args.seconds / 3),
                    ("r=16", "16", 0.9 * fast, args.seconds / 3),
                    ("r=auto, half of what r=0 can bear", "auto", 0.5 * exact, args.seconds / 2),
                )
            ]
        if "predictions" in args.parts:
            found["predictions"] = asdict(
                bench.predictions(tuple(map(str, LEVELS)), args.seconds / 2)
            )
        if "speedup" in args.parts:
            found["speedup_shown"], found["speedup_served"] = bench.speedup(args.seconds / 3)
    if "speedup" in args.parts:
        found["speedup_offline"] = offline_speedup(config, 16, args.threads)
    return found


def markdown(found: dict[str, Any]) -> str:
    """The results in words and a table."""
    lines: list[str] = []
    if "open" in found:
        lines += [
            (
                f"Capacity (closed loop, {found['connections']} connections):"
                f" {found['capacity_16']:.1f} images/s at r=16, {found['capacity_0']:.1f} at r=0;"
                f" deadline {found['deadline_ms']:.0f} ms."
            ),
            "",
            (
                "| requests | images/s | in time | refused | p50, ms | p99, ms | mean r | step of r"
                " | accuracy, % |"
            ),
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in (Open(**one) for one in found["open"]):
            accuracy = "" if row.accuracy is None else f"{row.accuracy:.2f}"
            lines.append(
                f"| {row.name} | {row.rate:.1f} | {row.in_time:.1%} | {row.refused:.1%} |"
                f" {row.p50_ms:.0f} | {row.p99_ms:.0f} | {row.mean_r:.1f} | {row.step:.1f} |"
                f" {accuracy} |"
            )
    if "predictions" in found:
        errors = Predictions(**found["predictions"])
        lines += [
            "",
            (
                f"Of {errors.batches:.0f} batches of mixed r, {errors.within_15:.1%} took within"
                f" 15% of the prediction, {errors.within_40:.1%} within 40%."
            ),
        ]
    if "speedup_shown" in found:
        lines += [
            "",
            (
                f"Speed-up at r=16: {found['speedup_shown']:.2f} by"
                f" `tome_r0_equivalent_seconds_total`; {found['speedup_served']:.2f} between loads"
                f" at r=0 and r=16; {found['speedup_offline']:.2f} without a server."
            ),
        ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write, print. Returns the exit code."""
    args = parse(arguments)
    console = Console(width=None if Console().is_terminal else 160)
    known = read_accuracies(args.profile) if args.profile else {}
    args.out.mkdir(parents=True, exist_ok=True)
    facts = about("benchmarks.auto", pick_device("auto"), args.threads or usable_cores())
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, write_random_model(args.model, Path(folder), seed=0), known, console)
    (args.out / "auto.json").write_text(
        json.dumps({"about": facts, **found}, indent=1) + "\n", "utf-8"
    )
    (args.out / "auto.md").write_text(markdown(found), "utf-8")
    console.print(Markdown(markdown(found)))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm name")
    parser.add_argument("--threads", type=int, default=0, help="of our engine; default: all cores")
    parser.add_argument(
        "--connections",
        type=int,
        default=BATCH,
        help="of each closed loop, as in `make bench-http`",
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="of the longest load; others take a part of that"
    )
    parser.add_argument("--capacity-seconds", type=float, default=12, help="of each closed loop")
    parts = ("load", "predictions", "speedup")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="what to measure")
    parser.add_argument(
        "--profile", type=Path, help="accuracy by r, as `tome-serve evaluate --profile` writes it"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder for what is written"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
