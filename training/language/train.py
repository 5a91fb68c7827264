"""Train the spoken-language model: `python -m training.language.train`.

First `python -m training.language.prepare` writes the recordings as arrays. A run is a folder. Each
stage writes its state there, and a restarted run resumes from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tome_core import MergedViT, Schedule
from training.language.accuracy import Windows, predictions, windows_of
from training.language.augment import training_batch
from training.language.clips import load
from training.language.corpus import Role
from training.language.network import build, normalised
from training.language.tape import Tape
from training.stages import (
    Run,
    Stage,
    accuracy_with_interval,
    add_options,
    cross_entropy,
    train_stages,
)

DATA_FOLDER = Path("training/runs/language-data")
RUN_FOLDER = Path("training/runs/language")
MERGING = (0, 5, 10, 15, 20, 25)  # values of r in training
LEVELS = (0, 5, 10, 15, 20, 22, 25)  # at which accuracy is reported
REPORTED = 150  # held-out clips at least that a report during training classifies
DROP_PATH = 0.1

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


class LanguageRun(Run):
    """A run of the spoken-language model."""

    def __init__(self, folder: Path, data: Path, seed: int, device: str) -> None:
        super().__init__(folder, seed, device)
        self.tape = Tape(load(data / f"{Role.TRAIN}.npz"), self.device)
        clips = load(data / f"{Role.HELD_OUT_CLIP}.npz")
        self.held_out = windows_of(clips, self.device)
        self.some_held_out = windows_of(clips[:: max(1, len(clips) // REPORTED)], self.device)

    def build(self) -> nn.Module:
        """Return the network with random weights."""
        return build(DROP_PATH)

    def loss(
        self,
        stage: Stage,
        model: MergedViT,
        r: int | Schedule,
        generator: torch.Generator,
        share: float,
    ) -> Tensor:
        """Return the loss of a batch of augmented windows."""
        log_mels, labels = training_batch(self.tape, stage.batch_size, generator)
        logits = model(normalised(log_mels).bfloat16(), r=r)
        return cross_entropy(logits, labels).mean()

    def report(self, model: nn.Module) -> dict[str, Any]:
        """Return the accuracies on some held-out clips."""
        return {"held_out_clips": accuracies(model, self.some_held_out, (0, 10))}

    def result(self, model: nn.Module) -> dict[str, Any]:
        """Return the accuracies on all held-out clips."""
        return {"held_out_clips": accuracies(model, self.held_out, LEVELS)}


def accuracies(
    model: nn.Module, windows: Windows, levels: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Return the accuracy in percent, and its 95% interval, by ``r``."""
    result = {}
    for r in levels:
        hits = int((predictions(model, windows, r=r) == windows.labels).sum())
        result[str(r)] = accuracy_with_interval(hits, len(windows.labels))
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.language.train", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA_FOLDER, help="folder of the arrays")
    stages = [stage.name for stage in CPU_STAGES]
    add_options(
        parser, RUN_FOLDER, stages, "cpu: 40 minutes of a core a stage; gpu: 4 minutes a stage"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    run = LanguageRun(args.run, args.data, args.seed, args.device)
    train_stages(run, RECIPES, args)


if __name__ == "__main__":
    main()
