"""Does the engine keep its speed while the API process is busy? `python -m benchmarks.contention`.

Three medians of the forward time of 8 images, measured in turns: through a server whose API process
is otherwise idle, through the same server while other connections keep its API process busy with
requests that the engine never sees, and in a process of its own with one thread fewer.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks import servers
from benchmarks.checkpoints import write_random_model

PORT = 8127
URL = f"http://127.0.0.1:{PORT}"
BATCH = 8

ALONE = """
import statistics, sys, time, timm, torch, tome_core
from server.engine.device.dtype_choice import choose_dtype
from server.engine.device.placement import cpu_dtypes
torch.set_num_threads(int(sys.argv[2]))
plain = tome_core.patch(timm.create_model(sys.argv[1]).eval())
choice = choose_dtype(plain, cpu_dtypes(), (3, 224, 224), (0,), sys.argv[1])
model = tome_core.optimize(plain, choice.dtype)
images = torch.randn(8, 3, 224, 224)
with torch.inference_mode():
    model(images)
    for line in sys.stdin:
        started = time.perf_counter()
        model(images)
        print(time.perf_counter() - started, flush=True)
"""


@contextmanager
def saturated(connections: int) -> Iterator[None]:
    """Keep the API process busy with requests that it refuses as fast as it can."""
    stop = threading.Event()

    def spin() -> None:
        with httpx.Client(base_url=URL) as client:
            while not stop.is_set():
                client.post("/classify?r=many", content=b"x")

    threads = [threading.Thread(target=spin) for _ in range(connections)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def forward_seconds(client: httpx.Client, pool: ThreadPoolExecutor, body: bytes) -> float:
    """Forward time of a full batch: send more images than fit, read one answer of a full one."""
    answers = [
        answer.json()
        for answer in pool.map(
            lambda _: client.post("/classify?r=0", content=body), range(2 * BATCH + 1)
        )
    ]
    return statistics.median(
        a["timing_ms"]["forward"] / 1000 for a in answers if a["batch_size"] == BATCH
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contention", description=__doc__)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--connections", type=int, default=2)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)).save(
        file, "JPEG"
    )

    times: dict[str, list[float]] = {
        "idle API": [],
        "busy API": [],
        f"alone, {max(cores - 1, 1)} thread(s)": [],
    }
    idle, busy, alone = times.values()
    with (
        tempfile.TemporaryDirectory() as folder,
        servers.ours(
            write_random_model(args.model, Path(folder)),
            PORT,
            max_batch=BATCH,
            levels=0,
            device="cpu",
        ),
        httpx.Client(base_url=URL, timeout=120) as client,
        ThreadPoolExecutor(2 * BATCH + 1) as pool,
    ):
        reference = subprocess.Popen(
            [sys.executable, "-c", ALONE, args.model, str(max(cores - 1, 1))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reference.stdin is not None and reference.stdout is not None
        for _ in track(range(args.rounds), "rounds"):
            idle.append(forward_seconds(client, pool, file.getvalue()))
            with saturated(args.connections):
                busy.append(forward_seconds(client, pool, file.getvalue()))
            print("go", file=reference.stdin, flush=True)
            alone.append(float(reference.stdout.readline()))
        reference.stdin.close()
        reference.wait()
    for what, values in times.items():
        print(f"{what:20s} {1000 * statistics.median(values):7.1f} ms")
    print(f"busy API / alone: {statistics.median(busy) / statistics.median(alone):.2f}")


if __name__ == "__main__":
    main()
