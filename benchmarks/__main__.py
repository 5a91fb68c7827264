"""`make bench`: images/s of the forward pass for each r, beside plain timm, in turns within one run; medians.

`make bench` runs all; `python -m benchmarks --help` lists what can be chosen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import tome_core

Forward = Callable[[Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def contestants(name: str, dtype: torch.dtype, levels: list[int], device: torch.device) -> dict[str, Forward]:
    """Plain timm, and ours at each ``r``, over the same random weights."""
    vit = timm.create_model(name).eval().to(device)
    fast = tome_core.optimize(tome_core.patch(vit), dtype)
    plain = timm.create_model(name).eval().to(device, dtype)
    forwards: dict[str, Forward] = {"timm": plain}
    for r in levels:
        forwards[f"r={r}"] = lambda images, r=r: fast(images, r=r)
    return forwards


@torch.inference_mode()
def seconds(forward: Forward, images: Tensor) -> float:
    """Time one forward pass."""
    started = time.perf_counter()
    forward(images).float().cpu()  # the copy waits for the device
    return time.perf_counter() - started


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224", help="timm name")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--r", type=int, nargs="+", default=[0, 8, 13, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    table = Table(
        "dtype", "batch", "what", "images/s", "of timm", title=f"{args.model}, {device}, {args.threads} threads"
    )
    for dtype in args.dtype:
        forwards = contestants(args.model, DTYPES[dtype], args.r, device)
        for batch in args.batch:
            images = torch.randn(batch, 3, 224, 224, device=device).to(DTYPES[dtype])
            times: dict[str, list[float]] = {what: [] for what in forwards}
            for number in track(range(args.rounds + 1), f"{dtype}, batch {batch}", transient=True):
                for what, forward in forwards.items():
                    took = seconds(forward, images)
                    if number:  # the first round warms up
                        times[what].append(took)
            medians = {what: statistics.median(values) for what, values in times.items()}
            for what, took in medians.items():
                table.add_row(dtype, str(batch), what, f"{batch / took:.1f}", f"{medians['timm'] / took:.2f}x")
            table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
