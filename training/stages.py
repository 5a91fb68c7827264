"""A training run in stages: each trains one model, saves its state, and resumes from it."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from torch import Tensor, nn

import tome_core
from tome_core import MergedViT, Schedule
from tome_core.attention import explicit_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from training.masters import MasterAdamW
from training.proportions import wilson
from training.states import save_state, save_weights

SMOOTHING = 0.1  # of the labels


@dataclass(frozen=True)
class Stage:
    """One model to train.

    Attributes:
        name: of its files; ``start`` is the name of the stage whose weights it starts from, if any.
        r: values of ``r``, or schedules, one of which is drawn at random for every step.
        steps: number of steps; 0 if ``seconds`` decides.
        seconds: how long training lasts, in as many steps as it takes; for rented machines.
        lr: learning rate after warm-up and at the end.
        report: steps from one report and saved state to the next.
    """

    name: str
    r: tuple[int | Schedule, ...]
    steps: int = 0
    seconds: float = 0.0
    batch_size: int = 64
    lr: tuple[float, float] = (1e-3, 1e-5)
    weight_decay: float = 0.05
    report: int = 100
    start: str = ""


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


class Run(ABC):
    """A training run: a folder with the states of all stages, for one seed."""

    def __init__(self, folder: Path, seed: int, device: str) -> None:
        self.folder = folder
        self.seed = seed
        self.device = torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network with random weights."""

    @abstractmethod
    def loss(
        self,
        stage: Stage,
        model: MergedViT,
        r: int | Schedule,
        generator: torch.Generator,
        share: float,
    ) -> Tensor:
        """Return the loss of a batch of new inputs, when ``share`` of the stage is done."""

    @abstractmethod
    def report(self, model: nn.Module) -> dict[str, Any]:
        """Return what is logged of the model during training."""

    @abstractmethod
    def result(self, model: nn.Module) -> dict[str, Any]:
        """Return what is logged of the trained model."""

    def log(self, record: dict[str, Any]) -> None:
        """Print ``record`` as a JSON line and append it to log.jsonl."""
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def train(self, stage: Stage) -> None:
        """Train ``stage`` to its end. Resume from its saved state, if any.

        Raises:
            SystemExit: it starts from a stage that is not trained yet.
        """
        torch.manual_seed(self.seed)
        network = self.build()
        if stage.start:
            network.load_state_dict(self.weights(stage.start))
        model = merged(network.to(self.device, torch.bfloat16))
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
                inputs = stage.batch_size * (done.steps - before.steps)
                rate = inputs / (time.perf_counter() - started)
                record: dict[str, Any] = {"stage": stage.name, "step": done.steps}
                record |= {"seconds": round(done.seconds), "loss": round(loss, 4)}
                record["inputs_per_s"] = round(rate, 1)
                self.log(record | self.report(model))
        self.finish(stage, model)

    def advance(
        self, stage: Stage, done: Done, model: MergedViT, optimizer: MasterAdamW
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
            share = now.share_of(stage)
            loss = self.loss(stage, model, choices.choice(stage.r), generator, share)
            loss.backward()
            optimizer.step(learning_rate(stage, share))
            total += loss.detach()
            steps += 1
            seconds = done.seconds + time.perf_counter() - started
            now = Done(done.steps + steps, seconds)
        return now, total.item() / max(1, steps)

    def state_path(self, stage: str) -> Path:
        """Return the file of the state of ``stage``."""
        return self.folder / f"{stage}.pt"

    def weights_path(self, stage: str) -> Path:
        """Return the file of the weights of ``stage``, which is there at its end."""
        return self.folder / f"{stage}.safetensors"

    def weights(self, stage: str) -> dict[str, Tensor]:
        """Return the weights of ``stage``.

        Raises:
            SystemExit: there are none yet.
        """
        path = self.weights_path(stage)
        if not path.exists():
            raise SystemExit(f"{path} is missing: train --stage {stage} first")
        return load_file(path)

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
        save_weights(self.weights_path(stage.name), model.state_dict())
        result = {"stage": stage.name} | self.result(model)
        (self.folder / f"{stage.name}.json").write_text(json.dumps(result, indent=2) + "\n")
        self.log(result)


def merged(network: nn.Module) -> MergedViT:
    """Return ``network`` as a model that merges, in training, too."""
    model = tome_core.patch(network)
    if next(network.parameters()).device.type == "cpu":
        # Explicit attention is faster than fused attention in bfloat16 on a CPU.
        model.execution = Execution(ReferenceStrategy(explicit_attention))
    return model


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy ``(B,)`` of ``logits (B, classes)``, the labels smoothed."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=SMOOTHING, reduction="none")


def accuracy_with_interval(hits: int, total: int) -> dict[str, Any]:
    """Return the accuracy in percent, and its 95% interval, for a log."""
    interval = [round(100 * bound, 2) for bound in wilson(hits, total)]
    return {"accuracy": round(100 * hits / total, 2), "interval": interval}


def default_device() -> str:
    """Return the device to train on unless another one is asked for."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_recipe(device: str) -> str:
    """Return the recipe for ``device``."""
    return "gpu" if torch.device(device).type == "cuda" else "cpu"


def add_options(
    parser: argparse.ArgumentParser, run: Path, stages: Sequence[str], recipes: str
) -> None:
    """Add the options of a run.

    Args:
        run: default folder of the run.
        stages: names of its stages.
        recipes: how long the recipes ``cpu`` and ``gpu`` take.
    """
    device = default_device()
    parser.add_argument("--run", type=Path, default=run, help="folder of the run")
    parser.add_argument("--device", default=device)
    parser.add_argument(
        "--recipe",
        choices=("cpu", "gpu"),
        default=default_recipe(device),
        help=f"{recipes}; default: by the device",
    )
    parser.add_argument("--stage", action="append", choices=stages, help="default all")
    parser.add_argument("--seconds", type=float, help="train each stage for this long instead")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def train_stages(
    run: Run, recipes: Mapping[str, Sequence[Stage]], args: argparse.Namespace
) -> None:
    """Train the stages that the command line asks for."""
    # cuDNN's attention makes a plan for every length, and merging gives it dozens of lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    for stage in _chosen(recipes[args.recipe], args.stage):
        if args.seconds:
            stage = replace(stage, steps=0, seconds=args.seconds)
        if args.batch_size:
            stage = replace(stage, batch_size=args.batch_size)
        run.train(stage)


def _chosen(stages: Iterable[Stage], names: Sequence[str] | None) -> list[Stage]:
    return [stage for stage in stages if not names or stage.name in names]
