"""Train the bundled model: `python -m training.train`. README.md explains the stages.

A run is a folder. Each stage writes its state there after every epoch, and a restarted run resumes
from it. A stopped run therefore loses at most one epoch.
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
from rich.progress import track
from torch import Tensor, nn

import tome_core
from server.allocator import keep_freed_memory
from tome_core import MergedViT
from tome_core.attention import explicit_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from training import data
from training.masters import MasterAdamW
from training.models import Teacher, refine, vit
from training.stages import default_device, default_recipe
from training.states import read_state, read_weights, save_state

RUNS_FOLDER = Path("training/runs")  # a run's own folder has the name of its recipe
# Final weights of some stages. A run without its own weights of a stage starts from them.
WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TEMPERATURE = 2.0  # of the distillation
TEACHER_SHARE = 0.7  # weight of the teacher's term in the loss


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        patch_size: patch size of the ViT; 0 for the teacher.
        lr: learning rate after warm-up and at the end.
        epochs: number of epochs; 0 if ``seconds`` decides.
        seconds: how long the stage lasts, in as many epochs as it takes, the last of which may be
            cut short; for rented machines.
        start: stage whose weights this stage starts from; empty for random weights.
        r: values of ``r``, one of which is drawn at random for every step; empty for no merging.
        pairs: merge by the rule "pairs" instead of the paper's in half of the steps, drawn at
            random.
        width: width of the teacher.
    """

    name: str
    patch_size: int
    lr: tuple[float, float]
    epochs: int = 0
    seconds: float = 0.0
    start: str = ""
    r: tuple[int, ...] = ()
    pairs: bool = False
    width: int = 16
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

# For a GPU that is there for minutes only: as many epochs as fit. Its `merged` goes on from `twin`.
GPU_STAGES = (
    Stage("teacher", 0, seconds=45, lr=(3e-3, 1e-5), weight_decay=0.02, batch_size=512, width=64),
    Stage("settled", 4, seconds=60, lr=(2e-3, 2e-4), batch_size=512),
    Stage("twin", 2, seconds=180, lr=(1.5e-3, 1e-5), start="settled", batch_size=512),
    Stage(
        "merged",
        2,
        seconds=180,
        lr=(1.5e-3, 1e-5),
        start="twin",
        r=(0, 8, 13, 16, 20, 25),
        pairs=True,
        batch_size=512,
    ),
)
RECIPES = {"cpu": STAGES, "gpu": GPU_STAGES}


def learning_rate(stage: Stage, progress: float, warmup: float = 0.04) -> float:
    """Return the learning rate: linear warm-up, then cosine decay.

    Args:
        stage: its ``lr`` gives the highest and the final learning rate.
        progress: completed share of the stage, 0 to 1.
        warmup: share of the stage for warm-up.
    """
    high, low = stage.lr
    if progress < warmup:
        return high * (progress + 1e-3) / warmup
    cosine = math.cos(math.pi * (progress - warmup) / (1 - warmup))
    return low + (high - low) * 0.5 * (1 + cosine)


def distillation_loss(
    logits: Tensor, labels: Tensor, teacher: nn.Module | None, images: Tensor
) -> Tensor:
    """Return cross-entropy mixed with soft distillation (DeiT, arXiv 2012.12877, section 4)."""
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
    """Return the top-1 accuracy in percent."""
    model.eval()
    dtype = next(model.parameters()).dtype
    hits = sum(
        int((model(x.to(dtype), **kwargs).argmax(-1) == y).sum())
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    )
    return 100 * hits / len(labels)


@dataclass(frozen=True)
class Done:
    """How far a stage is: whole epochs, the part of the one under way, and the seconds of all."""

    epochs: int = 0
    part: float = 0.0
    seconds: float = 0.0

    def share_of(self, stage: Stage) -> float:
        """Return the completed share of ``stage``, 1 at its end."""
        if stage.seconds:
            return self.seconds / stage.seconds
        return (self.epochs + self.part) / stage.epochs


class Run:
    """A training run: a folder with the states of all stages, for one seed."""

    def __init__(self, folder: Path, seed: int, device: str = "cpu") -> None:
        self.folder = folder
        self.seed = seed
        self.device = torch.device(device)
        folder.mkdir(parents=True, exist_ok=True)

    def weights(self, stage: str) -> dict[str, Tensor]:
        """Return the float32 weights of ``stage``, from this run or else from the repository."""
        path = self.state_path(stage)
        if path.exists():
            return read_state(path)
        return read_weights(WEIGHTS_FOLDER / f"{stage}.safetensors")

    def log(self, record: dict[str, Any]) -> None:
        """Print ``record`` as a JSON line and append it to log.jsonl."""
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def build(self, stage: Stage) -> nn.Module:
        """Return the stage's network in bfloat16 on the device, with its initial weights."""
        torch.manual_seed(self.seed)
        if not stage.patch_size:
            teacher = Teacher(stage.width).to(self.device, torch.bfloat16)
            return teacher.to(memory_format=torch.channels_last)
        network = vit(stage.patch_size)
        if stage.start:
            network.load_state_dict(refine(self.weights(stage.start), stage.patch_size))
        model = tome_core.patch(network.to(self.device, torch.bfloat16))
        if self.device.type == "cpu":
            # Explicit attention is faster than fused attention in bfloat16 on a CPU.
            model.execution = Execution(ReferenceStrategy(explicit_attention))
        return model

    def teacher(self) -> nn.Module:
        """Return the trained teacher, in evaluation mode."""
        weights = self.weights("teacher")
        network = Teacher(width=len(weights["0.weight"]))
        network.load_state_dict(weights)
        network = network.to(self.device, torch.bfloat16).eval()
        return network.to(memory_format=torch.channels_last)

    def train(self, stage: Stage) -> None:
        """Train ``stage`` to its end. Resume from its saved state, if any."""
        model = self.build(stage)
        optimizer = MasterAdamW(model, stage.weight_decay)
        done = self.resume(stage, model, optimizer)
        if done.share_of(stage) >= 1:
            return
        teacher = self.teacher() if stage.patch_size else None
        train = data.load("train", self.device)
        test = data.load("test", self.device)
        while done.share_of(stage) < 1:
            started = time.perf_counter()
            loss, images = self.epoch(stage, done, model, optimizer, teacher, train)
            seconds = time.perf_counter() - started
            done = Done(epochs=done.epochs + 1, seconds=done.seconds + seconds)
            self.save(stage, done, model, optimizer)
            share = done.share_of(stage)
            record = {
                "stage": stage.name,
                "epoch": done.epochs,
                "share": round(share, 3),
                "loss": round(loss, 4),
                "images_per_s": round(images / seconds, 1),
            }
            self.log(record | evaluate(stage, model, test, is_last=share >= 1))

    def state_path(self, stage: str) -> Path:
        """Return the file of the state of ``stage``, which is there after its first epoch."""
        return self.folder / f"{stage}.pt"

    def resume(self, stage: Stage, model: nn.Module, optimizer: MasterAdamW) -> Done:
        """Load the saved state of ``stage``, if any, and return how far it is."""
        path = self.state_path(stage.name)
        if not path.exists():
            return Done()
        state = torch.load(path, map_location=self.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return Done(epochs=state["epoch"], seconds=state.get("seconds", 0.0))

    def save(self, stage: Stage, done: Done, model: nn.Module, optimizer: MasterAdamW) -> None:
        """Save the state of ``stage``, from which `resume` goes on."""
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "epoch": done.epochs,
            "seconds": done.seconds,
        }
        save_state(self.state_path(stage.name), state)

    def epoch(
        self,
        stage: Stage,
        done: Done,
        model: nn.Module,
        optimizer: MasterAdamW,
        teacher: nn.Module | None,
        train: tuple[Tensor, Tensor],
    ) -> tuple[float, int]:
        """Train for one epoch, or for what is left of the stage's time.

        Returns:
            The mean loss of the steps, and the number of their images.
        """
        model.train()
        seed = self.seed + 1000 * done.epochs
        generator = torch.Generator(self.device).manual_seed(seed)
        choices = random.Random(seed)
        if isinstance(model, MergedViT):
            paper = model.merging
            pairs = paper.with_rule("pairs")
        steps = len(train[0]) // stage.batch_size
        steps_done = 0
        share = done.share_of(stage)
        total = torch.zeros((), device=self.device)
        batches = data.batches(*train, stage.batch_size, generator)
        started = time.perf_counter()
        for images, labels in track(batches, stage.name, steps):
            images = images.bfloat16()
            if stage.pairs and isinstance(model, MergedViT):
                model.merging = choices.choice((paper, pairs))
            logits = model(images, r=choices.choice(stage.r)) if stage.r else model(images)
            loss = distillation_loss(logits, labels, teacher, images)
            loss.backward()
            optimizer.step(learning_rate(stage, share))
            total += loss.detach()
            steps_done += 1
            seconds = done.seconds + time.perf_counter() - started
            share = Done(done.epochs, steps_done / steps, seconds).share_of(stage)
            if share >= 1:
                break
        if isinstance(model, MergedViT):
            model.merging = paper
        return total.item() / steps_done, steps_done * stage.batch_size


def evaluate(
    stage: Stage,
    model: nn.Module,
    test: tuple[Tensor, Tensor],
    is_last: bool,
) -> dict[str, Any]:
    """Return what the log says of the accuracy after an epoch, the last one or another."""
    images, labels = test
    levels: tuple[dict[str, Any], ...] = ({},)
    if stage.patch_size == 2:
        levels = ({"r": 0}, {"r": 13})
        # The full test set would take a fifth of an epoch, so only the last epoch uses all of it.
        if not is_last:
            images = images[:2000]
            labels = labels[:2000]
    accuracies = [round(accuracy(model, images, labels, **level), 2) for level in levels]
    return {"test_accuracy": accuracies, "test_images": len(labels)}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; ``recipe``, ``run`` and ``stage`` of the result are never None."""
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="cpu: hours on 2 cores; gpu: minutes; default: by the device",
    )
    parser.add_argument("--run", type=Path, help=f"folder of the run; default {RUNS_FOLDER}/RECIPE")
    parser.add_argument(
        "--stage", action="append", help="stages of the recipe to train; default all"
    )
    parser.add_argument("--device", default=default_device())
    parser.add_argument(
        "--start",
        metavar="STAGE",
        help="start the one stage that is trained from the weights of this stage",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(arguments)
    args.recipe = args.recipe or default_recipe(args.device)
    args.run = args.run or RUNS_FOLDER / args.recipe
    if args.start and len(args.stage or ()) != 1:
        parser.error("--start needs exactly one --stage")
    names = [stage.name for stage in RECIPES[args.recipe]]
    args.stage = args.stage or names
    for name in args.stage:
        if name not in names:
            parser.error(f"recipe {args.recipe} has no stage {name}; it has {', '.join(names)}")
    return args


def main() -> None:
    """Run the command line."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    # cuDNN's attention makes a plan for every length, and merging gives it dozens of lengths.
    torch.backends.cuda.enable_cudnn_sdp(False)
    run = Run(args.run, args.seed, args.device)
    for stage in RECIPES[args.recipe]:
        if stage.name not in args.stage:
            continue
        if args.start and run.state_path(stage.name).exists():
            print(f"{stage.name} is resumed from its state, without --start {args.start}")
        run.train(replace(stage, start=args.start or stage.start))


if __name__ == "__main__":
    main()
