"""`python -m benchmarks.labels`: what zero-shot labels cost beside the forward pass.

A ViT-B/16 of CLIP with random weights runs as the engine runs it, from pixels in host memory to the
best classes, in the dtype that `auto` picks on this machine. In turns run: the pass that ends with
the embedding; the same with the labels behind it, all images with the default label set; and, on
embeddings that are there, the labels alone, as the whole batch and with two label sets mixed. Times
are medians. The share is that of the labels alone in the pass without them; the difference of the
two passes says the same with more noise.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import timm
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

import tome_core
from benchmarks.measure import Plan, alternate
from benchmarks.results import about
from server.engine.device.dtype_choice import choose_dtype, dtype_name
from server.engine.device.forward import Forward
from server.engine.device.placement import (
    configure_pytorch,
    cpu_dtypes,
    pick_device,
    pick_dtype,
    set_threads,
)
from server.engine.device.readout import read_out
from server.engine.device.text_head import TextHead, TextHeads
from tome_core import Outputs
from tome_core.schedule import Schedule

ARCHITECTURE = "vit_base_patch16_clip_224"
SIZE = (3, 224, 224)
WIDTH = 512
SCALE = 100.0
TOP = 5
MAX_SHARE = 0.02
PLAN = Plan(rounds=15, turn_seconds=0.3, budget_seconds=200)


def main() -> int:
    """Print the table; return 1 if the labels cost more than they may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--r", default="0", help="schedule of all images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    args = parser.parse_args()
    device = pick_device(args.device)
    configure_pytorch(device)
    threads = set_threads(args.threads)
    network = load(device, args.dtype)
    dtype = dtype_name(next(network.parameters()).dtype)
    table = Table(
        "images",
        "pass, ms",
        "with labels, ms",
        "labels alone, ms",
        "two sets mixed, ms",
        "share",
        "share, mixed",
        title=f"{args.labels:,} labels, r={args.r}, {ARCHITECTURE}, {device} in {dtype}",
    )
    worst = 0.0
    for batch in args.batch:
        times = measure(network, device, batch, args.labels, Schedule.parse(args.r))
        plain, labelled, alone, mixed = (statistics.median(each) for each in times)
        shares = [alone / plain, mixed / plain]
        worst = max(worst, *shares)
        milliseconds = [f"{1000 * each:.3f}" for each in (plain, labelled, alone, mixed)]
        table.add_row(str(batch), *milliseconds, *(f"{share:.3%}" for share in shares))
    Console(width=120).print(table)
    described = about("benchmarks.labels", device, threads)
    print(", ".join(f"{name}: {value}" for name, value in described.items()))
    print(f"largest share {worst:.3%}, allowed {MAX_SHARE:.0%}")
    return int(worst > MAX_SHARE)


def load(device: torch.device, dtype_setting: str) -> tome_core.MergedViT:
    """Return the network, optimised as the engine does."""
    torch.manual_seed(0)
    vit = timm.create_model(ARCHITECTURE, num_classes=WIDTH).eval()
    plain = tome_core.patch(vit)
    dtype = pick_dtype(dtype_setting, device)
    if dtype is None:
        dtype = choose_dtype(plain, cpu_dtypes(), SIZE, [0], ARCHITECTURE).dtype
    return tome_core.optimize(plain.to(device), dtype, in_place=True)


def measure(
    network: tome_core.MergedViT,
    device: torch.device,
    batch: int,
    labels: int,
    schedule: Schedule,
) -> Sequence[Sequence[float]]:
    """Return the seconds of the pass, of that with labels, of labels alone, and of them mixed."""
    generator = torch.Generator().manual_seed(0)
    vectors = functional.normalize(torch.randn(labels, WIDTH, generator=generator), dim=-1)
    head = TextHead((SCALE * vectors).to(device), 0.0)
    heads = TextHeads({"a": head, "b": head}, "softmax")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, *SIZE), np.uint8)
    plain = _forward(network, device, batch, schedule, None)
    labelled = _forward(network, device, batch, schedule, heads)
    embeddings = torch.randn(batch, WIDTH, generator=generator).to(device)
    outputs = Outputs(embeddings, embeddings, None)
    names = ["a", "b"] * batch

    def alone() -> object:
        return read_out(heads.compare(outputs), "softmax", TOP)

    def mixed() -> object:
        return heads.read_out_each(outputs, names[:batch], TOP)

    runs: list[Callable[[], object]] = [
        partial(plain.run, pixels, [schedule] * batch, TOP),
        partial(labelled.run, pixels, [schedule] * batch, TOP),
        torch.inference_mode()(alone),
        torch.inference_mode()(mixed),
    ]
    for run in runs:
        run()
    synchronize = partial(torch.cuda.synchronize, device) if device.type == "cuda" else _nothing
    return alternate(runs, PLAN, synchronize)


def _forward(
    network: tome_core.MergedViT,
    device: torch.device,
    batch: int,
    schedule: Schedule,
    text: TextHeads | None,
) -> Forward:
    mean, std = (0.5,) * 3, (0.5,) * 3
    forward = Forward(network, mean, std, device, "softmax", text=text)
    if device.type == "cuda":
        wrong = forward.record([max(schedule.counts)], batch, SIZE)
        if wrong:
            raise RuntimeError(f"CUDA graphs {wrong}")
    return forward


def _nothing() -> None:
    """A CPU has no work in flight: calls return when it is done."""


if __name__ == "__main__":
    raise SystemExit(main())
