"""Seconds of a forward pass with PyTorch's operators, for the ways worth it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor

from benchmarks.measure import Plan, alternate
from research.beyond.ways import NEAREST, PAIRS, PAPER, WAYS
from server.errors import ConfigError
from server.system.files import replace_text
from tome_core import MergedViT

TIMED = (PAPER, PAIRS, NEAREST)
UNMERGED = "unmerged"
TURNS = 1 + len(TIMED)  # of a round


@dataclass(frozen=True)
class Speed:
    """Times of a model of random weights.

    Attributes:
        seconds: of each round, by way; `UNMERGED` is r=0.
    """

    arch: str
    r: int
    batch: int
    device: str
    dtype: str
    threads: int
    torch: str
    seconds: dict[str, list[float]]


def measure_speed(
    arch: str,
    r: int,
    batch: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    on_turn: Callable[[], object] = lambda: None,
) -> Speed:
    """Time `TURNS` in turns, every second round in reverse order, after one that does not count.

    Args:
        on_turn: called after each turn.

    Raises:
        ConfigError: timm has no such architecture.
    """
    torch.manual_seed(seed)
    try:
        vit = timm.create_model(arch, pretrained=False).eval().requires_grad_(False)
    except RuntimeError as error:
        raise ConfigError(f"timm cannot create {arch!r}: {error}") from error
    vit = vit.to(device, dtype)
    size = vit.pretrained_cfg["input_size"]
    images = torch.randn(batch, *size).to(device, dtype)
    networks = {way: WAYS[way].patch(vit) for way in TIMED}
    calls = [partial(_forward, networks[PAPER], images, 0)]
    calls += [partial(_forward, network, images, r) for network in networks.values()]

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for call in calls:
        call()
    plan = Plan(rounds=rounds, turn_seconds=0, budget_seconds=float("inf"))
    times = alternate(calls, plan, synchronize, on_turn)
    return Speed(
        arch=arch,
        r=r,
        batch=batch,
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        seconds=dict(zip((UNMERGED, *TIMED), times, strict=True)),
    )


@torch.inference_mode()
def _forward(network: MergedViT, images: Tensor, r: int) -> Tensor:
    return network(images, r=r)


def describe_speed(speed: Speed) -> Iterator[str]:
    """Yield what was measured."""
    rounds = len(speed.seconds[UNMERGED])
    yield (
        f"`python -m research.beyond --speed --batch {speed.batch} --rounds {rounds}`: a forward"
        f" pass of {speed.batch} images through {speed.arch} with random weights and PyTorch's"
        f" operators ({speed.device}, {speed.dtype}, {speed.threads} threads, torch {speed.torch}),"
        f" medians of {rounds} rounds in which all take turns. The ratio is the median over the"
        " rounds."
    )


def speed_table(speed: Speed) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| way, r={speed.r} | ms | to paper | to pairs |"
    yield "| --- | ---: | ---: | ---: |"
    for way, seconds in speed.seconds.items():
        cells = [f"{1000 * statistics.median(seconds):.1f}"]
        for base in (PAPER, PAIRS):
            of_rounds = zip(seconds, speed.seconds[base], strict=True)
            cells.append(f"{statistics.median(mine / other for mine, other in of_rounds):.3f}")
        yield f"| {way} | " + " | ".join(cells) + " |"


def write_speed(path: Path, speed: Speed) -> None:
    """Replace ``path`` as a whole.

    Raises:
        ConfigError: it cannot be written.
    """
    replace_text(path, json.dumps(asdict(speed), indent=1) + "\n")


def read_speed(path: Path) -> Speed | None:
    """Return what `write_speed` wrote; None if there is no file.

    Raises:
        ConfigError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        return Speed(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} holds no speeds; remove it, or name another --out") from error
