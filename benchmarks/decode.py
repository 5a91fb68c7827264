"""Encoded images to a model's pixels, in turns within one process; `python -m benchmarks.decode`.

The first table compares what the server does with what it does where the compiled resampling is
missing (Pillow alone), and where Pillow reads the JPEG files; the indented lines are parts. The
second compares JPEGs of several sizes with timm's transform (Pillow, through torchvision), and with
torchvision's JPEG decoder and its antialiased resize of uint8, which would need torch in the API
process. Both have the medians of the processor time of one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import timm.data
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional

from benchmarks.photographs import encode, noise, photograph
from server.imaging import decode as decoding
from server.imaging import resampling
from server.imaging.decode import decode, decode_frame, open_container
from server.imaging.resize import resize_and_crop
from server.media.transforms import ImageTransform

SIDE = 224
CROP = 0.9
LIMITS = (100_000_000, 100_000)  # pixels, side
WAYS = ("as served", "Pillow's JPEG decoder", "Pillow alone")
CALLS = 10  # of one way, before it is the next one's turn
SIZES = ((500, 375), (1024, 768), (1920, 1080), (4000, 3000))


def cases() -> dict[str, tuple[bytes, ImageTransform]]:
    """The images of the first table, by name, with what they are decoded for."""
    usual = ImageTransform((3, SIDE, SIDE), "bicubic", CROP, "center")
    small = ImageTransform((3, 28, 28), "bicubic", CROP, "center")
    tiny = encode(noise(28, 28), "PNG")
    return {
        "JPEG, photograph, 500 x 375": (encode(photograph(500, 375), quality=75), usual),
        "JPEG, noise, 224 x 224": (encode(noise(224, 224), quality=84), usual),
        "PNG, noise, 28 x 28": (tiny, usual),
        "PNG, noise, 28 x 28, to 28 x 28": (tiny, small),
    }


def compare(body: bytes, transform: ImageTransform, turns: int) -> dict[str, float]:
    """Milliseconds of ``body`` in each way, and of the parts of the first."""
    stripped = open_container(body)
    with Image.open(io.BytesIO(stripped.body)) as opened:
        image = opened.convert("RGB")

    def whole() -> object:
        return decode(body, transform, *LIMITS)

    def opening() -> object:
        with Image.open(io.BytesIO(stripped.body)) as opened:
            return opened.load()

    nothing = {"choose_library": lambda: None}
    ways: dict[str, tuple[Callable[[], object], dict[str, object]]] = {
        "as served": (whole, {}),
        "Pillow's JPEG decoder": (whole, {"decode_frame": lambda *_: None}),
        "Pillow alone": (whole, nothing),
        "container": (lambda: open_container(body), {}),
        "Pillow's open and load": (opening, {}),
        "resize": (lambda: resize_and_crop(image, transform), {}),
        "resize by Pillow": (lambda: resize_and_crop(image, transform), nothing),
    }
    if stripped.frame is not None:
        frame = stripped.frame
        ways["simplejpeg"] = (lambda: decode_frame(stripped.body, frame, 3), {})
    return {what: 1000 * took for what, took in in_turns(ways, turns).items()}


def in_turns(
    ways: dict[str, tuple[Callable[[], object], dict[str, object]]],
    turns: int,
) -> dict[str, float]:
    """Median seconds of the processor by way: a function, and what it is to find replaced."""
    times: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(turns):
        for what, (way, replaced) in ways.items():
            with replacing(replaced):
                way()
                started = time.thread_time()
                for _ in range(CALLS):
                    way()
                times[what].append((time.thread_time() - started) / CALLS)
    return {what: statistics.median(values) for what, values in times.items()}


@contextlib.contextmanager
def replacing(names: dict[str, object]) -> Iterator[None]:
    """Replace functions of decoding by name."""
    with contextlib.ExitStack() as stack:
        for module in (decoding, resampling):
            for name, value in names.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        yield


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
        return decode(body, transform, *LIMITS)

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
    console = Console(width=None if Console().is_terminal else 120)
    console.print(compare_ways(args.rounds))
    console.print(compare_sizes(args.rounds))


def compare_ways(rounds: int) -> Table:
    """Compare what the server does with what it does without the compiled parts."""
    table = Table(
        "image", "what", "ms", "of Pillow alone",
        title=f"to {SIDE} x {SIDE} unless it says otherwise, 1 thread",
    )  # fmt: skip
    for name, (body, transform) in cases().items():
        took = compare(body, transform, rounds)
        for what, milliseconds in took.items():
            share = f"{milliseconds / took['Pillow alone']:.2f}x" if what in WAYS else ""
            table.add_row(
                f"{name}, {len(body) / 1000:.1f} kB" if what == WAYS[0] else "",
                what if what in WAYS else f"  {what}",
                f"{milliseconds:.3f}",
                share,
            )
        table.add_section()
    return table


def compare_sizes(rounds: int) -> Table:
    """Compare with timm's transform and with torchvision's decoder."""
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
        turns = max(rounds * SIZES[0][0] * SIZES[0][1] // (width * height), 5)
        for _ in track(range(turns), f"{width} x {height}", transient=True):
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
    return table


if __name__ == "__main__":
    main()
