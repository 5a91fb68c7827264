"""`python -m benchmarks.folders`: how near `tome-serve embed FOLDER` comes to what the cores allow.

Decoding and the forward pass are measured alone, before and after each run of the whole command,
which is compared with the mean of both: seconds of one thread for a picture, from the file to its
pixels, and seconds of the model for a picture, on all cores. The bound is 1 / (forward + decode /
cores) pictures a second. The command counts from the end of its start (imports, the model) to its
end, with the file that it writes. Then it is killed at random times, goes on each time, and every
file must be in its output exactly once, with the vector that an undisturbed run gives. Pictures and
weights are random, and the same each time.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.checkpoints import write_random_model
from benchmarks.photographs import encode, photograph
from server.commands.flags import EmbedCommand
from server.commands.folders.decoding import read_picture
from server.commands.inputs import Row, read_inputs
from server.commands.offline import load_runner, parse_schedule, pick_model
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.hardware import usable_cores
from tome_core.schedule import Schedule

SIZES = ((256, 256), (320, 240), (375, 500), (500, 375))
MOTIFS = 16  # of each size; the pictures are these, shifted
SUBFOLDERS = 7
# Of pictures that are decoded, or run, in one round.
SAMPLE = 256
LEAST_COSINE = 0.999
_BEGINS = re.compile(r"running ([\d,]+) of [\d,]+ pictures")


@dataclass
class Times:
    """Seconds for one picture, of each round. What is measured before and after is their mean."""

    decode: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)


def make_pictures(folder: Path, count: int) -> None:
    """Write ``count`` JPEG files, also in folders below ``folder``."""
    motifs = {
        (size, number): np.asarray(photograph(*size, seed=number))
        for size in SIZES
        for number in range(MOTIFS)
    }
    for index in range(SUBFOLDERS):
        (folder / f"part{index}").mkdir(parents=True, exist_ok=True)
    for index in track(range(count), "pictures", transient=True):
        size = SIZES[index % len(SIZES)]
        motif = motifs[size, index // len(SIZES) % MOTIFS]
        shifted = np.roll(motif, index, axis=(0, 1))
        path = folder / f"part{index % SUBFOLDERS}" / f"{index:07}.jpg"
        path.write_bytes(encode(Image.fromarray(shifted)))


def decode_alone(runner: Runner, files: list[Path]) -> tuple[list[Row], float]:
    """Return the pixels of ``files``, and the seconds of one thread for one of them."""
    started = time.perf_counter()
    rows = [read_inputs(read_picture(str(file)), runner.model.transform).rows[0] for file in files]
    return rows, (time.perf_counter() - started) / len(files)


def forward_alone(runner: Runner, rows: list[Row], schedule: Schedule, batch: int) -> float:
    """Return the seconds of the model for one picture, in batches of ``batch``."""
    inputs = [ImageInput(row, schedule, 0, "features") for row in rows]
    batches = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    started = time.perf_counter()
    for each in batches:
        runner.run(each)
    return (time.perf_counter() - started) / len(inputs)


@dataclass
class Embedding:
    """The command, in a process of its own."""

    arguments: list[str]

    def run(self) -> float:
        """Run it; return the seconds from the end of its start to its end, for one picture."""
        process = self._start("--fresh")
        count, begun = _wait_for_begin(process)
        code = process.wait()
        assert code == 0, f"tome-serve embed ended with {code}"
        return (time.perf_counter() - begun) / count

    def run_and_kill(self, seconds: float, draw: random.Random) -> str:
        """Kill it at a random time, and say when.

        Args:
            seconds: that a picture takes.
            draw: of the time.
        """
        process = self._start()
        count, _ = _wait_for_begin(process)
        # Not too late, so that the next start has something to do.
        delay = draw.uniform(0.05, 0.5) * count * seconds
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return f"{count:,} pictures to do; killed after {delay:.2f} s"
        return f"{count:,} pictures to do; ended before it was to be killed, after {delay:.2f} s"

    def resume(self) -> int:
        """Run it to its end; return how many pictures it had to do."""
        process = self._start()
        count, _ = _wait_for_begin(process)
        code = process.wait()
        assert code == 0, f"tome-serve embed ended with {code}"
        return count

    def _start(self, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "server", "embed", *self.arguments, *flags]
        # stderr is read as far as the line that says that the work begins; a pipe has room for the
        # few lines after it.
        return subprocess.Popen(
            command, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )


def _wait_for_begin(process: subprocess.Popen[str]) -> tuple[int, float]:
    """Return how many pictures a command has to do, and when it begins with them."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := _BEGINS.search(line):
            return int(match[1].replace(",", "")), time.perf_counter()
    raise SystemExit(f"tome-serve embed failed:\n{''.join(lines)}")


def measure(
    runner: Runner,
    files: list[Path],
    schedule: Schedule,
    batch: int,
    command: Embedding,
    rounds: int,
) -> Times:
    """Measure decoding and the forward pass alone, before and after each run of the command."""
    times = Times()
    draw = random.Random(0)

    def measure_alone() -> tuple[float, float]:
        rows, decode = decode_alone(runner, draw.sample(files, min(SAMPLE, len(files))))
        return decode, forward_alone(runner, rows, schedule, batch)

    measure_alone()  # fills caches
    for _ in track(range(rounds), "rounds", transient=True):
        # Minutes pass, in which the machine's own speed may change.
        decode_before, forward_before = measure_alone()
        times.command.append(command.run())
        decode_after, forward_after = measure_alone()
        times.decode.append((decode_before + decode_after) / 2)
        times.forward.append((forward_before + forward_after) / 2)
    return times


def report(times: Times, cores: int) -> Table:
    """Return the medians, and the median of the rounds' ratios to their bounds."""
    table = Table("", "ms a picture", "pictures/s", "lowest and highest of the rounds")
    bounds = [
        forward + decode / cores
        for forward, decode in zip(times.forward, times.decode, strict=True)
    ]
    rows = {
        "decode, one thread": times.decode,
        f"forward pass, {cores} cores": times.forward,
        "bound": bounds,
        "tome-serve embed": times.command,
    }
    for name, seconds in rows.items():
        median = statistics.median(seconds)
        table.add_row(
            name,
            f"{1000 * median:.3f}",
            f"{1 / median:.1f}",
            f"{1 / max(seconds):.1f} to {1 / min(seconds):.1f}",
        )
    ratios = [bound / command for bound, command in zip(bounds, times.command, strict=True)]
    table.add_row(
        "of the bound",
        "",
        f"{statistics.median(ratios):.3f}",
        f"{min(ratios):.3f} to {max(ratios):.3f}",
    )
    return table


def kill_and_resume(
    command: Embedding, files: list[Path], output: Path, times: int, seconds: float
) -> Iterator[str]:
    """Kill the command at random; yield what each start had to do, and what the output has.

    Args:
        output: which an undisturbed run has written.
        seconds: that an undisturbed run takes for one picture.
    """
    expected = np.load(output)
    draw = random.Random(0)
    for _ in range(times):
        yield command.run_and_kill(seconds, draw)
    yield f"{command.resume():,} pictures to do; ran to its end"
    found = output.with_suffix(".paths.txt").read_text("utf-8").splitlines()
    if found != sorted(map(str, files)):
        raise SystemExit("the output does not have every file exactly once")
    embeddings = np.load(output)
    same_shape = embeddings.shape == expected.shape
    if not same_shape or not (cosines(embeddings, expected) > LEAST_COSINE).all():
        raise SystemExit("the embeddings differ from those of an undisturbed run")
    largest = np.abs(embeddings - expected).max() / np.abs(expected).max()
    yield (
        f"every file exactly once; largest difference to an undisturbed run {largest:.1e} of the"
        " largest value"
    )


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosines of the rows of two arrays ``(n, D)``."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.einsum("nd,nd->n", left, right) / norms


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folders", description=__doc__)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--model", default="vit_small_patch16_224", help="of timm")
    parser.add_argument("--r", default="8")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the files; default: a temporary one")
    args = parser.parse_args()
    console = Console(width=None if Console().is_terminal else 120)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        config = write_random_model(args.model, folder, seed=0)
        pictures = folder / "pictures"
        make_pictures(pictures, args.pictures)
        files = sorted(pictures.rglob("*.jpg"))
        output = folder / "features.npy"
        arguments = [
            str(pictures), f"--output={output}", f"--config={config}", f"--r={args.r}",
            f"--dtype={args.dtype}", f"--batch={args.batch}",
        ]  # fmt: skip
        settings = EmbedCommand(
            folder=pictures, output=output, config=config, dtype=args.dtype, log_level="warning"
        )
        runner = load_runner(settings, pick_model(settings, ""))
        schedule = parse_schedule(runner, args.r)
        command = Embedding(arguments)
        times = measure(runner, files, schedule, args.batch, command, args.rounds)
        cores = usable_cores()
        console.print(
            f"{args.model} in {args.dtype}, r={args.r}, batches of {args.batch}; {len(files):,}"
            f" JPEGs of {SIZES[0]} to {SIZES[-1]}; {cores} cores; medians of {args.rounds} rounds"
        )
        console.print(report(times, cores))
        seconds = statistics.median(times.command)
        for line in kill_and_resume(command, files, output, args.kills, seconds):
            console.print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
