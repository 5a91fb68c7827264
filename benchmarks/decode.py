"""JPEG bytes to a model's pixels, in turns within one process; `python -m benchmarks.decode`.

Beside the server's own way: timm's transform (Pillow, through torchvision), and torchvision's JPEG
decoder with its antialiased resize of uint8, which would need torch in the API process. Medians of
the processor time of one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import timm.data
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks.photographs import encode, photograph
from server.imaging.decode import decode
from server.media.transforms import ImageTransform

SIDE = 224
CROP = 0.9
SIZES = ((500, 375), (1024, 768), (1920, 1080), (4000, 3000))


def contestants(body: bytes) -> dict[str, Callable[[], np.ndarray]]:
    """Ways from ``body`` to ``uint8 (3, 224, 224)``."""
    transform = ImageTransform((3, SIDE, SIDE), "bicubic", CROP, "center")
    reference = timm.data.create_transform(
        transform.size,
        is_training=False,
        use_prefetcher=True,
        interpolation="bicubic",
        crop_pct=CROP,
    )

    def ours() -> np.ndarray:
        return decode(body, transform, max_pixels=100_000_000, max_side=100_000)

    def timms() -> np.ndarray:
        return reference(Image.open(io.BytesIO(body)).convert("RGB")).numpy()

    def torchvisions() -> np.ndarray:
        image = decode_jpeg(torch.frombuffer(bytearray(body), dtype=torch.uint8), ImageReadMode.RGB)
        bicubic = functional.InterpolationMode.BICUBIC
        resized = functional.resize(
            image, [int(SIDE / CROP)], interpolation=bicubic, antialias=True
        )
        return functional.center_crop(resized, [SIDE, SIDE]).numpy()

    return {"timm": timms, "torchvision": torchvisions, "server.imaging.decode": ours}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=100, help="of the smallest size; larger ones get fewer"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)

    table = Table(
        "JPEG",
        "what",
        "ms",
        "of timm",
        "mean difference",
        "largest",
        title=f"to {SIDE} x {SIDE}, 1 thread",
    )
    for width, height in SIZES:
        body = encode(photograph(width, height))
        ways = contestants(body)
        times: dict[str, list[float]] = {what: [] for what in ways}
        rounds = max(args.rounds * SIZES[0][0] * SIZES[0][1] // (width * height), 5)
        for _ in track(range(rounds), f"{width} x {height}", transient=True):
            for what, way in ways.items():
                started = time.thread_time()
                way()
                times[what].append(time.thread_time() - started)
        expected = ways["timm"]().astype(int)
        medians = {what: statistics.median(values) for what, values in times.items()}
        for what, took in medians.items():
            difference = np.abs(ways[what]() - expected)
            table.add_row(
                f"{width} x {height}, {len(body) // 1000} kB", what, f"{1000 * took:.2f}",
                f"{took / medians['timm']:.2f}x", f"{difference.mean():.4f}", str(difference.max()),
            )  # fmt: skip
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
