"""Device calls beyond PyTorch's: of a GPU, or of the CPU in its place in a dry run."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from server.engine.device.cuda_graphs import without_garbage_collection

Call = Callable[[], Any]
MAX_CALLS = 200  # in one turn


class Accelerator(Protocol):
    """A device that is timed."""

    device: torch.device

    def synchronize(self) -> None:
        """Wait for all that it was given to do. Raises what went wrong in it."""
        ...

    def seconds(self, call: Call, count: int) -> float:
        """Of one ``call``, the mean of ``count`` in a row."""
        ...

    def peak_bytes(self, call: Call) -> int:
        """Memory that ``call`` needs beyond what is held already."""
        ...

    def record(self, call: Call) -> Call:
        """What does the same as ``call`` as one recorded piece, into the same memory every time."""
        ...

    def waits(self, call: Call) -> bool:
        """Whether the host waits for the device in ``call``: then it cannot be recorded."""
        ...

    def allow_cudnn_attention(self, allowed: bool) -> None:
        """Whether PyTorch's attention may be cuDNN's, from now on."""
        ...

    def free(self) -> None:
        """Give unused memory back."""
        ...

    def is_lost(self) -> bool:
        """Whether every call fails until the process ends, as after an illegal memory access."""
        ...


class Gpu:
    """The first NVIDIA GPU."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", 0)
        torch.cuda.set_device(self.device)

    def synchronize(self) -> None:
        """See `Accelerator`."""
        torch.cuda.synchronize()

    def seconds(self, call: Call, count: int) -> float:
        """Between two events on the device: what the host is late by counts."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / count

    def peak_bytes(self, call: Call) -> int:
        """By the caching allocator."""
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - held

    def record(self, call: Call) -> Call:
        """As a CUDA graph, after three calls beside it, in which libraries set themselves up."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with without_garbage_collection(), torch.cuda.graph(graph, stream=stream):
            result = call()

        def replay() -> Any:
            graph.replay()
            return result

        return replay

    def waits(self, call: Call) -> bool:
        """As far as PyTorch can tell."""
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        except RuntimeError as error:
            if "synchroniz" not in str(error):
                raise
            return True
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return False

    def allow_cudnn_attention(self, allowed: bool) -> None:
        """See `Accelerator`."""
        torch.backends.cuda.enable_cudnn_sdp(allowed)

    def free(self) -> None:
        """See `Accelerator`."""
        torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        """See `Accelerator`."""
        try:
            torch.cuda.synchronize()
            torch.ones(1, device=self.device).add_(1).item()
        except Exception:
            return True
        return False


class Cpu:
    """Stands in for a GPU: its times mean nothing, and what it records is remembered."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        torch.set_num_threads(1)

    def synchronize(self) -> None:
        """Nothing is ever under way."""

    def seconds(self, call: Call, count: int) -> float:
        """By the host's clock."""
        started = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - started) / count

    def peak_bytes(self, call: Call) -> int:
        """Is not known."""
        call()
        return 0

    def record(self, call: Call) -> Call:
        """``call`` itself."""
        return call

    def waits(self, call: Call) -> bool:
        """Never."""
        return False

    def allow_cudnn_attention(self, allowed: bool) -> None:
        """There is none."""

    def free(self) -> None:
        """Nothing."""

    def is_lost(self) -> bool:
        """Never."""
        return False


def accelerator(dry: bool) -> Accelerator:
    """The GPU, or the CPU where the day is dry."""
    return Cpu() if dry else Gpu()


def in_turns(
    on: Accelerator, calls: Mapping[str, Call], rounds: int, turn_seconds: float, until: float
) -> dict[str, list[float]]:
    """Seconds per call of each in each round; every second round runs in reverse order.

    Args:
        turn_seconds: of the calls of one turn together, which are timed as one.
        until: no further round begins after this `time.time`, once there is one.
    """
    counts: dict[str, int] = {}
    for name, call in calls.items():
        call()
        once = max(on.seconds(call, 1), 1e-6)
        counts[name] = min(MAX_CALLS, max(1, math.ceil(turn_seconds / once)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        if number and time.time() > until:
            break
        for name in calls if number % 2 == 0 else reversed(list(calls)):
            times[name].append(on.seconds(calls[name], counts[name]))
    return times


def median(times: list[float]) -> float:
    """The middle one; NaN where there is none."""
    return statistics.median(times) if times else math.nan
