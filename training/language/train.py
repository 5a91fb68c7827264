"""Train the spoken-language model: `python -m training.language.train`.

First `python -m training.language.prepare` writes the recordings as arrays. A run is a folder. Each
stage writes its state there, and a restarted run resumes from it.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import tome_core
from tome_core import MergedViT
from tome_core.attention import explicit_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from training.language.accuracy import Windows, predictions, wilson, windows_of
from training.language.augment import training_batch
from training.language.clips import load
from training.language.corpus import Role
from training.language.network import build, normalised
from training.language.tape import Tape
from training.masters import MasterAdamW
from training.states import save_state, save_weights

DATA_FOLDER = Path("training/runs/language-data")
RUNS_FOLDER = Path("training/runs")
MERGING = (0, 5, 10, 15, 20, 25)  # values of r in training
LEVELS = (0, 5, 10, 15, 20, 22, 25)  # at which accuracy is reported
REPORTED = 150  # held-out clips at least that a report during training classifies
SMOOTHING = 0.1  # of the labels
DROP_PATH = 0.1


@dataclass(frozen=True)
class Stage:
    """One model to train.

    Attributes:
        r: values of ``r``, one of which is drawn at random for every step.
        steps: number of steps; 0 if ``seconds`` decides.
        seconds: how long training lasts, in as many steps as it takes; for rented machines.
        lr: learning rate after warm-up and at the end.
        report: steps from one report and saved state to the next.
    """

    name: str
    r: tuple[int, ...]
    steps: int = 0
    seconds: float = 0.0
    batch_size: int = 64
    lr: tuple[float, float] = (1e-3, 1e-5)
    weight_decay: float = 0.05
    report: int = 100


# About 40 minutes each, of one core.
CPU_STAGES = (
    Stage("merged", MERGING, steps=1200),
    Stage("twin", (0,), steps=1200),
)
GPU_STAGES = (
    Stage("merged", MERGING, seconds=240, batch_size=512, lr=(1.5e-3, 1e-5), report=250),
    Stage("twin", (0,), seconds=240, batch_size=512, lr=(1.5e-3, 1e-5), report=250),
)
RECIPES = {"cpu": CPU_STAGES, "gpu": GPU_STAGES}


def learning_rate(stage: Stage, share: float, warmup: float = 0.05) -> float:
    """Return the learning rate when ``share`` of the stage is done: warm-up, then a cosine."""
    high, low = stage.lr
    if share < warmup:
        return high * (share + 1e-3) / warmup
    cosine = math.cos(math.pi * (share - warmup) / (1 - warmup))
    return low + (high - low) * 0.5 * (1 + cosine)


@dataclass(frozen=True)
class Done:
    """How far a stage is."""

    steps: int = 0
    seconds: float = 0.0

    def share_of(self, stage: Stage) -> float:
        """Return the completed share of ``stage``, 1 at its end."""
        if stage.seconds:
            return min(1.0, self.seconds / stage.seconds)
        return self.steps / stage.steps


class Run:
    """A training run: a folder with the states of all stages, for one seed."""

    def __init__(self, folder: Path, data: Path, seed: int, device: str) -> None:
        self.folder = folder
        self.seed = seed
        self.device = torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)
        self.tape = Tape(load(data / f"{Role.TRAIN}.npz"), self.device)
        clips = load(data / f"{Role.HELD_OUT_CLIP}.npz")
        self.held_out = windows_of(clips, self.device)
        self.some_held_out = windows_of(clips[:: max(1, len(clips) // REPORTED)], self.device)

    def log(self, record: dict[str, Any]) -> None:
        """Print ``record`` as a JSON line and append it to log.jsonl."""
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def train(self, stage: Stage) -> None:
        """Train ``stage`` to its end. Resume from its saved state, if any."""
        torch.manual_seed(self.seed)
        model = merged(build(DROP_PATH).to(self.device, torch.bfloat16))
        optimizer = MasterAdamW(model, stage.weight_decay)
        done = self.resume(stage, model, optimizer)
        columns = (TextColumn(stage.name), BarColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            task = progress.add_task("", total=1.0)
            while done.share_of(stage) < 1:
                started = time.perf_counter()
                before = done
                done, loss = self.advance(stage, done, model, optimizer)
                self.save(stage, done, model, optimizer)
                progress.update(task, completed=done.share_of(stage))
                clips = stage.batch_size * (done.steps - before.steps)
                rate = clips / (time.perf_counter() - started)
                record: dict[str, Any] = {"stage": stage.name, "step": done.steps}
                record |= {"seconds": round(done.seconds), "loss": round(loss, 4)}
                record["windows_per_s"] = round(rate)
                record["held_out_clips"] = accuracies(model, self.some_held_out, (0, 10))
                self.log(record)
        self.finish(stage, model)

    def advance(
        self, stage: Stage, done: Done, model: nn.Module, optimizer: MasterAdamW
    ) -> tuple[Done, float]:
        """Train until the next report; return how far it is, and the mean loss."""
        model.train()
        seed = self.seed + 1_000_003 * (done.steps + 1)
        generator = torch.Generator(self.device).manual_seed(seed)
        choices = random.Random(seed)
        torch.manual_seed(seed)  # of the blocks that are dropped
        total = torch.zeros((), device=self.device)
        started = time.perf_counter()
        steps = 0
        now = done
        while steps < stage.report and now.share_of(stage) < 1:
            log_mels, labels = training_batch(self.tape, stage.batch_size, generator)
            inputs = normalised(log_mels).bfloat16()
            logits = model(inputs, r=choices.choice(stage.r))
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING)
            loss.backward()
            optimizer.step(learning_rate(stage, now.share_of(stage)))
            total += loss.detach()
            steps += 1
            seconds = done.seconds + time.perf_counter() - started
            now = Done(done.steps + steps, seconds)
        return now, total.item() / max(1, steps)

    def state_path(self, stage: str) -> Path:
        """Return the file of the state of ``stage``."""
        return self.folder / f"{stage}.pt"

    def resume(self, stage: Stage, model: nn.Module, optimizer: MasterAdamW) -> Done:
        """Load the saved state of ``stage``, if any, and return how far it is."""
        path = self.state_path(stage.name)
        if not path.exists():
            return Done()
        state = torch.load(path, map_location=self.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return Done(state["steps"], state["seconds"])

    def save(self, stage: Stage, done: Done, model: nn.Module, optimizer: MasterAdamW) -> None:
        """Save the state of ``stage``, from which `resume` goes on."""
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "steps": done.steps,
            "seconds": done.seconds,
        }
        save_state(self.state_path(stage.name), state)

    def finish(self, stage: Stage, model: nn.Module) -> None:
        """Write the weights as float16 safetensors, and the accuracies of the stage."""
        save_weights(self.folder / f"{stage.name}.safetensors", model.state_dict())
        result = {"stage": stage.name, "held_out_clips": accuracies(model, self.held_out, LEVELS)}
        (self.folder / f"{stage.name}.json").write_text(json.dumps(result, indent=2) + "\n")
        self.log(result)


def merged(network: nn.Module) -> MergedViT:
    """Return ``network`` as a model that merges, in training, too."""
    model = tome_core.patch(network)
    if next(network.parameters()).device.type == "cpu":
        # Explicit attention is faster than fused attention in bfloat16 on a CPU.
        model.execution = Execution(ReferenceStrategy(explicit_attention))
    return model


def accuracies(
    model: nn.Module, windows: Windows, levels: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Return the accuracy in percent, and its 95% interval, by ``r``."""
    result = {}
    total = len(windows.labels)
    for r in levels:
        hits = int((predictions(model, windows, r=r) == windows.labels).sum())
        interval = [round(100 * bound, 2) for bound in wilson(hits, total)]
        result[str(r)] = {"accuracy": round(100 * hits / total, 2), "interval": interval}
    return result


def default_device() -> str:
    """Return the device to train on unless another one is asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.language.train", description=__doc__)
    device = default_device()
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the arrays")
    parser.add_argument(
        "--run", type=Path, default=RUNS_FOLDER / "language", help="folder of the run"
    )
    parser.add_argument("--device", default=device)
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="gpu" if device.startswith("cuda") else "cpu",
        help="cpu: 40 minutes of a core a stage; gpu: 4 minutes a stage; default: by the device",
    )
    parser.add_argument("--stage", action="append", choices=("merged", "twin"), help="default both")
    parser.add_argument("--seconds", type=float, help="train each stage for this long instead")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    # cuDNN's attention makes a plan for every length, and merging gives it dozens of lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    run = Run(args.run, args.data, args.seed, args.device)
    for stage in RECIPES[args.recipe]:
        if args.stage and stage.name not in args.stage:
            continue
        if args.seconds:
            stage = replace(stage, steps=0, seconds=args.seconds)
        if args.batch_size:
            stage = replace(stage, batch_size=args.batch_size)
        run.train(stage)


if __name__ == "__main__":
    main()
