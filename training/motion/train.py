"""Train the motion model: `python -m training.motion.train`.

Clips are made from the pictures of Fashion-MNIST while training goes on. A run is a folder. Each
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
from tome_core.networks.video_vit import VideoViT
from training.motion.clips import Clips, garments, held_out, training_batch
from training.motion.network import build, normalised
from training.stages import (
    Run,
    Stage,
    accuracy_with_interval,
    add_options,
    cross_entropy,
    train_stages,
)

RUN_FOLDER = Path("training/runs/motion")
# Values of r in training; the decreasing schedules leave down to a quarter of the operations.
DECREASING = tuple(Schedule.parse(f"{r}:-1") for r in (28, 36, 40, 44))
MERGING: tuple[int | Schedule, ...] = (0, 12, 24, 36, 44, *DECREASING)
# At which accuracy is reported.
LEVELS = ("0", "12", "24", "32", "36", "40", "44", "28:-1", "32:-1", "36:-1", "40:-1", "44:-1")
REPORTED_LEVELS = ("0", "40", "40:-1")  # during training
REPORTED = 600  # held-out clips that a report during training classifies
HELD_OUT = {"cpu": 600, "gpu": 6000}  # clips that the trained model classifies, by recipe
DROP_PATH = 0.05
FIRST = "local"  # the stage whose loss is `local_loss`
RAMP = 0.75  # of the first stage, after which its clips are as difficult as all others

# At most 100 minutes each, of two cores.
CPU_LR = (5e-4, 1e-5)
CPU_STAGES = (
    Stage(FIRST, (0,), steps=1800, batch_size=32, lr=(1e-3, 1e-4), report=200),
    Stage("merged", MERGING, steps=1800, batch_size=32, lr=CPU_LR, report=200, start=FIRST),
    Stage("twin", (0,), steps=1600, batch_size=32, lr=CPU_LR, report=200, start=FIRST),
)
GPU_LR = (8e-4, 1e-5)
GPU_STAGES = (
    Stage(FIRST, (0,), seconds=110, batch_size=128, lr=(1e-3, 1e-4), report=400),
    Stage("merged", MERGING, seconds=170, batch_size=256, lr=GPU_LR, report=200, start=FIRST),
    Stage("twin", (0,), seconds=170, batch_size=256, lr=GPU_LR, report=200, start=FIRST),
)
RECIPES = {"cpu": CPU_STAGES, "gpu": GPU_STAGES}


class MotionRun(Run):
    """A run of the motion model."""

    def __init__(self, folder: Path, seed: int, device: str, held_out: int) -> None:
        super().__init__(folder, seed, device)
        self.held_out = held_out
        self.garments = garments("train", self.device)
        self.held_out_garments = garments("test", self.device)

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
        """Return the loss of a batch of new clips; those of the first stage are easy at first."""
        difficulty = min(1.0, share / RAMP) if stage.name == FIRST else 1.0
        made = training_batch(self.garments, stage.batch_size, generator, difficulty)
        inputs = normalised(made.pixels).bfloat16()
        if stage.name != FIRST:
            return cross_entropy(model(inputs, r=r), made.labels).mean()
        network = model.adapter.network
        assert isinstance(network, VideoViT)
        return local_loss(network, inputs, made)

    def report(self, model: nn.Module) -> dict[str, Any]:
        """Return the accuracies on some held-out clips."""
        return self.accuracies(model, REPORTED_LEVELS, min(REPORTED, self.held_out))

    def result(self, model: nn.Module) -> dict[str, Any]:
        """Return the accuracies on all held-out clips."""
        return self.accuracies(model, LEVELS, self.held_out)

    @torch.inference_mode()
    def accuracies(self, model: nn.Module, levels: Sequence[str], count: int) -> dict[str, Any]:
        """Return the accuracies on ``count`` held-out clips, by schedule."""
        model.eval()
        hits = dict.fromkeys(levels, 0)
        for made in held_out(self.held_out_garments, count):
            inputs = normalised(made.pixels).bfloat16()
            for level in levels:
                classes = model(inputs, r=Schedule.parse(level)).argmax(dim=-1)
                hits[level] += int((classes == made.labels).sum())
        found = {level: accuracy_with_interval(hits[level], count) for level in levels}
        return {"held_out_clips": found}


def local_loss(network: VideoViT, inputs: Tensor, made: Clips) -> Tensor:
    """Return the loss of a clip's class, told by all tokens, and by each of those that move.

    The second term speeds up the start. In the mean of all tokens, those of the moving garment are
    few, and for long the first term alone does not find them.

    Args:
        inputs: the pixels of ``made``, normalised.
    """
    tokens = network.forward_features(inputs)
    whole = cross_entropy(network.forward_head(tokens), made.labels).mean()
    logits = network.head(network.fc_norm(tokens))  # (B, N, classes)
    count = tokens.shape[1]
    each = cross_entropy(logits.flatten(0, 1), made.labels.repeat_interleave(count))
    weights = made.cover.flatten()
    return whole + (weights * each).sum() / weights.sum()


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.motion.train", description=__doc__)
    stages = [stage.name for stage in CPU_STAGES]
    add_options(
        parser, RUN_FOLDER, stages, "cpu: 100 minutes of two cores a stage; gpu: 4 minutes a stage"
    )
    counts = " or ".join(f"{count} ({recipe})" for recipe, count in HELD_OUT.items())
    parser.add_argument(
        "--held-out", type=int, help=f"clips that the trained model classifies; default: {counts}"
    )
    args = parser.parse_args(arguments)
    args.held_out = args.held_out or HELD_OUT[args.recipe]
    return args


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    run = MotionRun(args.run, args.seed, args.device, args.held_out)
    train_stages(run, RECIPES, args)


if __name__ == "__main__":
    main()
