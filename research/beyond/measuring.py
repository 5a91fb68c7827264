"""Run rows over the images, and compare every image with itself at r=0."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

import tome_core
from research.bench import Bench
from research.beyond.results import Result, rounded
from research.beyond.schedules import relative_flops
from research.beyond.ways import PAPER, WAYS, Way
from server.errors import ConfigError
from tome_core.attention import explicit_attention, fused_attention
from tome_core.cost import Cost
from tome_core.pixels import Pixels
from tome_core.schedule import Schedule

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Exact:
    """A batch at r=0.

    Attributes:
        classes: class tokens of length 1, ``(B, D)``.
        patches: patch tokens of length 1, float16 to save memory, ``(B, P, D)``.
        log_probabilities: ``(B, classes)``.
    """

    classes: Tensor
    patches: Tensor
    log_probabilities: Tensor


class Measurer:
    """Measures rows on one bench.

    Args:
        bench: the model, and the images to measure and to calibrate on.
        images: the first so many of the bench's are measured; the others are for calibration.
        batch: images of one forward pass.

    Raises:
        ConfigError: the model has no class token.
    """

    def __init__(self, bench: Bench, images: int, batch: int) -> None:
        if bench.shape.prefix == 0:
            raise ConfigError(
                f"model {bench.loaded.spec.name} has no class token, whose loss is measured;"
                " name another model"
            )
        self.bench = bench
        self.images = images
        self.batch = batch
        self.cost: Cost = tome_core.patch(bench.vit).cost()
        self._exact: dict[int, Exact] = {}
        self._exact_network = self.network(WAYS[PAPER])

    def network(self, way: Way) -> tome_core.MergedViT:
        """Return the model, merging in this way.

        All ways run with PyTorch's operators, so that none differs by a kernel's rounding.
        """
        bench = self.bench
        attend = explicit_attention if bench.device.type == "cpu" else fused_attention
        plain = way.patch(bench.vit, bench.loaded.spec.prop_attn)
        network = tome_core.optimize(plain, bench.dtype)
        network.execution = replace(network.execution, strategy=way.strategy(attend), prune=False)
        network.encoder = None
        return network

    def flops(self, way: Way, schedule: Schedule) -> float:
        """Return the FLOPs relative to no merging, with those of matching."""
        cost = way.comparisons.of(self.cost)
        return relative_flops(cost, schedule, self.bench.shape, way.matcher)

    def measure(
        self, way: Way, schedule: Schedule, advance: Advance = lambda images: None
    ) -> Result:
        """Measure one row; ``advance`` gets the number of images done after each batch."""
        started = time.perf_counter()
        network = self.network(way)
        losses, flags = self._run(network, schedule, range(self.images), advance)
        class_loss, patch_loss, divergence = losses.numpy()
        agrees, correct = flags.numpy()
        return Result(
            class_loss=rounded(class_loss),
            patch_loss=rounded(patch_loss),
            divergence=rounded(divergence),
            agrees=agrees,
            correct=correct,
            schedule=str(schedule),
            tokens=network.token_counts(schedule, self.bench.shape.tokens)[-1],
            relative_flops=round(self.flops(way, schedule), 5),
            seconds=round(time.perf_counter() - started, 1),
        )

    def block_losses(self, way: Way, r: int, advance: Advance = lambda images: None) -> list[float]:
        """Return what merging ``r`` in one block alone costs, for each block.

        It is class loss and patch loss together, over the images for calibration: merging in the
        last block changes patches alone.
        """
        network = self.network(way)
        images = range(self.images, len(self.bench.pixels))
        costs = []
        for block in range(self.bench.shape.depth):
            schedule = Schedule.per_layer([0] * block + [r])
            losses, _ = self._run(network, schedule, images, advance)
            costs.append(float(losses[:2].sum(dim=0).mean()))
        return costs

    @torch.inference_mode()
    def _run(
        self, network: tome_core.MergedViT, schedule: Schedule, images: range, advance: Advance
    ) -> tuple[Tensor, Tensor]:
        """Return class loss, patch loss and divergence, ``(3, M)``, and both flags, ``(2, M)``."""
        losses = []
        flags = []
        for start, batch in self._batches(images):
            exact = self._exact_batch(start, batch)
            trace = network.trace(batch, r=schedule)
            labels = torch.from_numpy(self.bench.labels[start : start + len(batch)])
            losses.append(_losses(trace, exact, self.bench.shape.prefix))
            flags.append(_flags(trace.logits.float(), exact, labels))
            advance(len(batch))
        all_losses = torch.cat(losses, dim=1)
        if not self.bench.loaded.labels:
            all_losses[2] = torch.nan  # what a model without classes returns are features
        return all_losses, torch.cat(flags, dim=1)

    def _batches(self, images: range) -> Iterator[tuple[int, Pixels]]:
        """Yield the index of the first image of each batch, and the batch."""
        loaded = self.bench.loaded
        device = self.bench.device
        mean = torch.tensor(loaded.mean, device=device)
        std = torch.tensor(loaded.std, device=device)
        for start in range(images.start, images.stop, self.batch):
            end = min(start + self.batch, images.stop)
            values = torch.from_numpy(self.bench.pixels[start:end]).to(device)
            yield start, Pixels(values, 1 / (255 * std), -mean / std)

    def _exact_batch(self, start: int, batch: Pixels) -> Exact:
        """Run a batch at r=0, once."""
        if start not in self._exact:
            trace = self._exact_network.trace(batch, r=0)
            assert isinstance(trace.tokens, Tensor)
            unit = F.normalize(trace.tokens.float(), dim=-1)
            self._exact[start] = Exact(
                unit[:, 0].clone(),
                unit[:, self.bench.shape.prefix :].half(),
                trace.logits.float().log_softmax(dim=-1),
            )
        return self._exact[start]


def _losses(trace: tome_core.Trace, exact: Exact, prefix: int) -> Tensor:
    """Return class loss, patch loss and divergence, float64 ``(3, B)``."""
    tokens = F.normalize(trace.unmerge().float(), dim=-1)  # (B, N0, D)
    # In float64, in which 1 - cosine keeps its small differences.
    class_loss = (tokens[:, 0].double() - exact.classes.double()).square().sum(dim=-1) / 2
    distances = (tokens[:, prefix:] - exact.patches.float()).square().sum(dim=-1) / 2  # (B, P)
    patch_loss = distances.mean(dim=-1).double()
    log_probabilities = trace.logits.double().log_softmax(dim=-1)
    exact_log = exact.log_probabilities.double()
    divergence = (exact_log.exp() * (exact_log - log_probabilities)).sum(dim=-1)
    return torch.stack([class_loss, patch_loss, divergence]).cpu()


def _flags(logits: Tensor, exact: Exact, labels: Tensor) -> Tensor:
    """Return whether the class is that at r=0, and whether it is the true one, ``(2, B)``."""
    classes = logits.argmax(dim=-1)
    agrees = classes == exact.log_probabilities.argmax(dim=-1)
    return torch.stack([agrees.cpu(), classes.cpu() == labels])
