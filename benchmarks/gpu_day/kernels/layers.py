"""The layers between attention and merging, in shapes of ViT-B/16, bfloat16: norms, GELU."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_day.kernels.workload import DTYPE, Workload, worst
from tome_core.backends.cuda.gelu import launch_gelu_
from tome_core.backends.cuda.norms import Rows, launch_add_norm

EPS = 1e-6


def workloads(device: str, dry: bool) -> Iterator[Workload]:
    """All that there are, one by one."""
    width, sizes = (64, (5,)) if dry else (768, (50432, 6304, 197))
    for tokens in sizes:
        yield hidden_of(tokens, width, device)
    for tokens in sizes:
        yield norm_of(tokens, width, device)


def hidden_of(tokens: int, width: int, device: str) -> Workload:
    """The first linear layer of an MLP, and GELU: in one product, and one after the other."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    x = random(tokens, width).to(DTYPE)
    weight = (random(4 * width, width) / width**0.5).to(DTYPE)
    bias = random(4 * width).to(DTYPE)
    expected = F.gelu(F.linear(x.float(), weight.float(), bias.float()))
    return Workload(
        kernel="fc1 with GELU",
        shape=f"{tokens} x {width}",
        bytes=5 * x.nbytes + weight.nbytes,
        flops=2 * weight.numel() * tokens,
        deviation=lambda found: worst(found, expected),
        variants={
            "served": lambda: torch._addmm_activation(bias, x, weight.t(), use_gelu=True),
            "linear + gelu_": lambda: launch_gelu_(F.linear(x, weight, bias)),
        },
        peers={
            "linear + gelu": lambda: F.gelu(F.linear(x, weight, bias)),
            "linear": partial(F.linear, x, weight, bias),
        },
    )


def norm_of(tokens: int, width: int, device: str) -> Workload:
    """Residual sum and layer norm."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator).to(DTYPE)

    x = random(tokens, width)
    branch = random(tokens, width)
    weight = random(width)
    bias = random(width)
    launch = partial(launch_add_norm, x, branch, weight, bias, EPS)
    total = x + branch
    expected = F.layer_norm(total.float(), (width,), weight.float(), bias.float(), EPS)
    return Workload(
        kernel="add and norm",
        shape=f"{tokens} x {width}",
        bytes=4 * x.nbytes,
        flops=0,
        deviation=lambda found: max(worst(found[0], total.float()), worst(found[1], expected)),
        variants={
            "served": launch,
            **{f"w{warps}": partial(launch, Rows(1, warps)) for warps in (1, 4)},
        },
        peers={"add + layer_norm": lambda: F.layer_norm(x + branch, (width,), weight, bias, EPS)},
    )
