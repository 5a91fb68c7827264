"""Train the bundled model: `python -m training.train`. See README.md beside this file for what each stage is for.

A run is a folder. Every stage writes its state there after each epoch and goes on from it when
started again, so a run can be stopped at any moment and loses at most one epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn

import tome_core
from server.allocator import keep_freed_memory
from tome_core.attention import explicit_attention
from training import data
from training.masters import MasterAdamW
from training.models import Teacher, refine, vit

KEPT = (
    Path(__file__).parent / "weights"
)  # ends of stages, so that a run can begin in the middle of the recipe
TEMPERATURE = 2.0
TEACHER_SHARE = 0.7  # of the distillation loss


@dataclass(frozen=True)
class Stage:
    """One stretch of training. ``patch_size`` 0 is the teacher; ``start`` names the stage whose weights it refines.

    ``r``: one of these is drawn for every step; empty means without merging.
    """

    name: str
    patch_size: int
    epochs: int
    lr: tuple[float, float]
    start: str = ""
    r: tuple[int, ...] = ()
    batch_size: int = 256
    weight_decay: float = 0.05


STAGES = (
    Stage("teacher", 0, epochs=12, lr=(3e-3, 1e-5), weight_decay=0.02),
    Stage("coarse", 7, epochs=8, lr=(2e-3, 5e-4)),
    Stage("medium", 4, epochs=6, lr=(1e-3, 1e-4), start="coarse"),
    Stage("settled", 4, epochs=10, lr=(1e-3, 2e-5), start="medium", batch_size=128),
    Stage(
        "merged",
        2,
        epochs=3,
        lr=(5e-4, 1e-5),
        start="settled",
        r=(0, 8, 13, 16, 20, 25),
        batch_size=128,
    ),
    Stage("twin", 2, epochs=2, lr=(5e-4, 1e-5), start="settled", batch_size=128),
)


def learning_rate(stage: Stage, progress: float, warmup: float = 0.04) -> float:
    """Linear warm-up, then a half cosine from ``stage.lr[0]`` to ``stage.lr[1]``; ``progress`` in [0, 1]."""
    high, low = stage.lr
    if progress < warmup:
        return high * (progress + 1e-3) / warmup
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: nn.Module | None, images: Tensor
) -> Tensor:
    """Cross-entropy with the labels, mixed with the teacher's softened distribution (DeiT, section 4: soft)."""
    hard = F.cross_entropy(logits.float(), labels)
    if teacher is None:
        return hard
    with torch.no_grad():
        soft = F.log_softmax(teacher(images).float() / TEMPERATURE, dim=-1)
    student = F.log_softmax(logits.float() / TEMPERATURE, dim=-1)
    divergence = F.kl_div(student, soft, reduction="batchmean", log_target=True) * TEMPERATURE**2
    return (1 - TEACHER_SHARE) * hard + TEACHER_SHARE * divergence


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, **kwargs: Any) -> float:
    """Share of ``images`` whose largest logit is the label, in percent."""
    model.eval()
    dtype = next(model.parameters()).dtype
    hits = sum(
        int((model(x.to(dtype), **kwargs).argmax(-1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * hits / len(labels)


class Run:
    """A folder with the states of all stages of one seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        folder.mkdir(parents=True, exist_ok=True)

    def weights(self, stage: str) -> dict[str, Tensor]:
        """Float32 weights of ``stage`` in this run, or, where it has none, those kept in the repository."""
        path = self.folder / f"{stage}.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)["model"]
        else:
            state = load_file(KEPT / f"{stage}.safetensors")
        return {key: value.float() for key, value in state.items()}

    def log(self, record: dict[str, Any]) -> None:
        """Print one line, and append it to log.jsonl."""
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def build(self, stage: Stage) -> nn.Module:
        """The stage's network in bfloat16, with the weights it starts from."""
        torch.manual_seed(self.seed)
        if not stage.patch_size:
            return Teacher().bfloat16().to(memory_format=torch.channels_last)
        network = vit(stage.patch_size)
        if stage.start:
            network.load_state_dict(refine(self.weights(stage.start), stage.patch_size))
        model = tome_core.patch(network.bfloat16())
        model.merging = replace(
            model.merging, attend=explicit_attention
        )  # the faster one in bfloat16 on a CPU
        return model

    def teacher(self) -> nn.Module:
        """The finished teacher, frozen."""
        network = Teacher()
        network.load_state_dict(self.weights("teacher"))
        return network.bfloat16().eval().to(memory_format=torch.channels_last)

    def train(self, stage: Stage) -> None:
        """Run ``stage`` from where its state says to its last epoch."""
        path = self.folder / f"{stage.name}.pt"
        generator = torch.Generator().manual_seed(self.seed)
        model = self.build(stage)
        optimizer = MasterAdamW(model, stage.weight_decay)
        first = 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            generator.set_state(state["generator"])
            first = state["epoch"]
        if first >= stage.epochs:
            return
        teacher = self.teacher() if stage.patch_size else None
        train = data.load("train")
        test = data.load("test")
        for epoch in range(first, stage.epochs):
            started = time.perf_counter()
            loss = self.epoch(stage, epoch, model, optimizer, teacher, train, generator)
            seconds = time.perf_counter() - started
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
            }
            torch.save(state | {"generator": generator.get_state()}, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
            speed = len(train[0]) / seconds
            # At full length the whole test set would cost a fifth of an epoch; the last epoch is
            # judged on all of it.
            full = stage.patch_size != 2 or epoch + 1 == stage.epochs
            seen = test if full else (test[0][:2000], test[1][:2000])
            levels = ({"r": 0}, {"r": 13}) if stage.patch_size == 2 else ({},)
            self.log(
                {
                    "stage": stage.name,
                    "epoch": epoch + 1,
                    "of": stage.epochs,
                    "loss": round(loss, 4),
                }
                | {"images_per_s": round(speed, 1)}
                | {"test_accuracy": [round(accuracy(model, *seen, **level), 2) for level in levels]}
                | {"test_images": len(seen[1])}
            )

    def epoch(
        self,
        stage: Stage,
        epoch: int,
        model: nn.Module,
        optimizer: MasterAdamW,
        teacher: nn.Module | None,
        train: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> float:
        """One pass over the training images; returns the mean loss."""
        model.train()
        steps = len(train[0]) // stage.batch_size
        total = 0.0
        pairs = data.batches(*train, stage.batch_size, generator)
        for step, (images, labels) in enumerate(
            track(pairs, f"{stage.name} {epoch + 1}/{stage.epochs}", steps)
        ):
            images = images.bfloat16()
            drawn = int(torch.randint(max(len(stage.r), 1), (), generator=generator))
            logits = model(images, r=stage.r[drawn]) if stage.r else model(images)
            loss = distillation_loss(logits, labels, teacher, images)
            loss.backward()
            optimizer.step(learning_rate(stage, (epoch + step / steps) / stage.epochs))
            total += loss.item()
        return total / steps


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument(
        "--run", type=Path, default=Path("training/runs/default"), help="folder of the states"
    )
    parser.add_argument(
        "--stage", action="append", choices=[s.name for s in STAGES], help="only these; default all"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    run = Run(args.run, args.seed)
    for stage in STAGES:
        if not args.stage or stage.name in args.stage:
            run.train(stage)


if __name__ == "__main__":
    main()
