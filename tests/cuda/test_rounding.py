"""In the dtypes that serve, the optimised network is as far from exact numbers as the plain one in
that dtype is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import tome_core
from server.engine.device import self_check
from tests.cuda.networks import LEVELS, MIXED, POSITIONS, SMALL, images, network, side

pytestmark = pytest.mark.cuda

BFLOAT16 = torch.bfloat16
FLOAT16 = torch.float16
FLOAT32 = torch.float32
DTYPES = [BFLOAT16, FLOAT16, FLOAT32]
ROUNDS = 2  # images of each schedule: limits are on the median and the worst of all


def in_dtypes(
    names: list[str], everywhere: tuple[str, ...] = ("class-token",)
) -> list[tuple[str, torch.dtype]]:
    """Networks, and dtypes for them: all for some, the one that serves for the others, as much has
    to be compiled.
    """
    return [
        (name, dtype) for name in names for dtype in (DTYPES if name in everywhere else [BFLOAT16])
    ]


def wrong(found: list[float], noise: list[float], dtype: torch.dtype) -> str:
    """What the self check would say; but an image in 25 may merge another way, where two tokens are
    nearly alike.

    That happens to the tokens of small networks with random weights. Of what is wrong, all images
    would be.
    """
    kept = sorted(found)[: -max(1, len(found) // 25)]
    return self_check.judge(kept, noise, torch.finfo(dtype).eps)


def logits(
    model: tome_core.MergedViT, name: str, r: Any, device: torch.device, seed: int
) -> torch.Tensor:
    with torch.inference_mode():
        return model(images(name, len(MIXED), seed).to(device), r=r)


@cache
def exact_logits(name: str, device: torch.device) -> list[torch.Tensor]:
    """Of the network in float64, for all rounds and values of r."""
    exact = network(name, device)
    return [
        logits(exact, name, r, device, seed)
        for seed in range(ROUNDS)
        for r in (*LEVELS, list(MIXED))
    ]


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_dtypes([*SMALL, *POSITIONS, "vit-s"], ("class-token", "rotary", "relative")),
    ids=str,
)
def test_errors_are_those_of_the_dtype(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    plain = network(name, gpu, dtype)
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    rounded = []
    found = []
    for seed in range(ROUNDS):
        for r in (*LEVELS, list(MIXED)):
            rounded.append(logits(plain, name, r, gpu, seed))
            found.append(logits(fast, name, r, gpu, seed))
    wanted = exact_logits(name, gpu)
    noise = self_check.errors(rounded, wanted)
    assert wrong(self_check.errors(found, wanted), noise, dtype) == ""


@pytest.mark.parametrize(
    ("name", "dtype"),
    in_dtypes(["class-token", "like-dinov2", "rotary", "relative", "vit-s"]),
    ids=str,
)
def test_the_self_check_accepts(name: str, dtype: torch.dtype, gpu: torch.device) -> None:
    size = 3, side(name), side(name)
    proven = self_check.accelerate(network(name, gpu, torch.float32), dtype, size, LEVELS, name)
    assert proven.kind == "kernels"


@pytest.mark.parametrize(
    ("name", "dtype"), in_dtypes(["class-token", "registers", "rotary", "vit-s"]), ids=str
)
def test_an_image_alone_and_in_a_mixed_batch(
    name: str, dtype: torch.dtype, gpu: torch.device
) -> None:
    """Both lie within rounding of each other: three times what the plain network's differ from
    exact numbers by.
    """
    exact = network(name, gpu)
    plain = network(name, gpu, dtype)
    fast = tome_core.optimize(network(name, gpu, torch.float32), dtype)
    alone = []
    together = []
    noise = []
    for seed in range(ROUNDS):
        batch = images(name, len(MIXED), seed).to(gpu)
        with torch.inference_mode():
            alone.append(torch.cat([fast(batch[i : i + 1], r=r) for i, r in enumerate(MIXED)]))
            together.append(fast(batch, r=list(MIXED)))
            noise += self_check.errors([plain(batch, r=list(MIXED))], [exact(batch, r=list(MIXED))])
    assert wrong(self_check.errors(together, alone), noise, dtype) == ""
