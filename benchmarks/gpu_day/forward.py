"""Step 3: the forward pass in turns, by model, batch size, r and contender."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tome_core
from benchmarks import cases, contenders
from benchmarks.gpu_day.accelerator import Accelerator, Call, accelerator, in_turns, median
from benchmarks.gpu_day.day import Day, begin, describe
from benchmarks.gpu_day.models import LEVELS, MODELS, TINY, Model, r_of

# What matters most first: the rest is measured if there is time.
ORDER = (
    ("B", 256),
    ("B", 32),
    ("B", 1),
    ("L", 256),
    ("S", 256),
    ("S", 32),
    ("S", 1),
    ("L", 32),
    ("B384", 64),
    ("L", 1),
)
OPERATORS_RECORDED = (("B", 32), ("B", 1))
ROUNDS = 5
TURN_SECONDS = 0.04
MIN_SIMILARITY = 0.98  # of logits at r=0, beside timm's
RESERVE_SECONDS = 8  # a case takes about so long
TRIES = 4  # of a case; each in a process of its own

Forward = Callable[[Tensor, int | list[int]], Tensor]
Key = tuple[str, str]  # contender and level


class NotRecorded(Exception):
    """A pass could not be recorded, and nobody knows what that leaves of the process."""


def main(day: Day) -> None:
    """Measure every case; one that fails or loses the GPU costs itself and a new process."""
    on = accelerator(day.dry)
    networks: dict[str, Forward] = {}
    built = ""
    for name, batch in left_of(day, (("tiny", 3),) if day.dry else ORDER):
        if day.left < RESERVE_SECONDS and not day.dry:
            day.write(what="left out", model=name, batch=batch)
            continue
        day.write(what="case", model=name, batch=batch, left=round(day.left))
        model = TINY if day.dry else MODELS[name]
        try:
            if built != name:
                networks.clear()
                clean(on)
                networks = build(day, on, model)
                built = name
            with torch.inference_mode():
                measure(day, on, networks, model, batch)
        except NotRecorded:
            day.restart("forward", "a pass could not be recorded")
        except Exception as error:  # one case must not cost the others
            day.write(model=name, batch=batch, error=describe(error))
        if on.is_lost():
            day.restart("forward", "the GPU fails at everything")
        day.write(what="done", model=name, batch=batch)
        clean(on)


def left_of(day: Day, cases: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The cases that are not done, and were not begun too often."""
    rows = day.rows()
    found: dict[Any, list[tuple[str, int]]] = {
        what: [(row["model"], row["batch"]) for row in rows if row.get("what") == what]
        for what in ("case", "done")
    }
    return [
        case for case in cases if case not in found["done"] and found["case"].count(case) < TRIES
    ]


def clean(on: Accelerator) -> None:
    """Free what the last case held."""
    gc.collect()
    on.free()


def build(day: Day, on: Accelerator, model: Model) -> dict[str, Forward]:
    """Everyone's network, each with weights of its own."""
    name = "fp32" if day.dry else "bf16"
    dtype = cases.DTYPES[name]
    vit = model.create(on.device)
    case = cases.Case(cases.Model(model.timm, model.pixels, LEVELS), name, 1, LEVELS)
    setup = contenders.Setup(vit, case, on.device, torch.get_num_threads())
    networks: dict[str, Forward] = {"timm": contenders.Timm().build(setup)}
    published = contenders.Published(day.tome)
    if day.tome and (missing := published.missing(on.device)):
        day.write(model=model.name, contender="published", note=missing)
    elif day.tome:
        try:
            networks["published"] = published.build(setup)
        except Exception as error:
            day.write(model=model.name, contender="published", error=describe(error))
    networks["operators"] = tome_core.optimize(tome_core.patch(vit), dtype, kernels=False)
    networks["ours"] = tome_core.optimize(tome_core.patch(vit), dtype, in_place=True)
    return networks


def measure(
    day: Day, on: Accelerator, networks: dict[str, Forward], model: Model, batch: int
) -> None:
    """One case: prepare all calls, look at what they give, time them in turns."""
    dtype = torch.float32 if day.dry else torch.bfloat16
    images = torch.randn(batch, 3, model.pixels, model.pixels, device=on.device, dtype=dtype)
    calls: dict[Key, Call] = {}
    found: dict[Key, dict[str, Any]] = {}
    logits: dict[Key, Tensor] = {}
    hopeless = is_hopeless(day, model, batch)
    for (contender, level), prepare in entries(
        on, networks, images, records_operators(model, batch)
    ):
        key = contender, level
        if hopeless(key):
            continue
        row: dict[str, Any] = {
            "model": model.name,
            "batch": batch,
            "contender": contender,
            "r": level,
        }
        try:
            started = time.perf_counter()
            calls[key], row["peak_mb"] = prepare()
            logits[key] = calls[key]()[:1].float().clone()
            on.synchronize()
            row["prepare_s"] = round(time.perf_counter() - started, 2)
            row["similarity"] = similarity(logits, contender, level)
            if level == "0" and row["similarity"] < MIN_SIMILARITY:
                row["note"] = "its logits at r=0 are not timm's"
            found[key] = row
        except (
            Exception
        ) as error:  # one that cannot run this case, such as a pass that cannot be recorded
            calls.pop(key, None)
            day.write(**row, error=describe(error))
            if "graph" in contender or on.is_lost():
                raise NotRecorded from error
    if day.tome and ("published", "16") in logits and ("ours", "16") in logits:
        found["ours", "16"]["of_published"] = cosine(
            logits["ours", "16"], logits["published", "16"]
        )
    names = {f"{contender} {level}": (contender, level) for contender, level in calls}
    rounds, turn = (2, 0.0) if day.dry else (ROUNDS, TURN_SECONDS)
    times = in_turns(on, {name: calls[key] for name, key in names.items()}, rounds, turn, day.until)
    for name, key in names.items():
        seconds = median(times[name])
        row = found[key]
        day.write(
            **row,
            ms=1000 * seconds,
            images_per_s=batch / seconds,
            rounds_ms=[round(1000 * one, 4) for one in times[name]],
        )


def records_operators(model: Model, batch: int) -> bool:
    """Whether the operators are recorded as a graph too: in a few cases, to see what it gains."""
    return model is TINY or (model.name, batch) in OPERATORS_RECORDED


def is_hopeless(day: Day, model: Model, batch: int) -> Callable[[Key], bool]:
    """Whether this case failed in an earlier attempt, or could not be recorded in any case.

    In the last try of a case nothing is recorded: what is there to be seen besides should be seen.
    """
    rows = day.rows()
    is_here = [row for row in rows if (row.get("model"), row.get("batch")) == (model.name, batch)]
    failed = {
        (row["contender"], row["r"])
        for row in rows
        if row.get("error") and "r" in row and ("graph" in row["contender"] or row in is_here)
    }
    is_last = sum(row.get("what") == "case" for row in is_here) >= TRIES
    return lambda key: key in failed or (is_last and "graph" in key[0])


def entries(
    on: Accelerator, networks: dict[str, Forward], images: Tensor, with_operators: bool
) -> Iterator[tuple[Key, Callable[[], tuple[Call, float]]]]:
    """Who runs at what, and how each is prepared: a call, and the megabytes that one call needs.

    Ours is there twice: with kernels of our own, and with PyTorch's operators alone, which are
    recorded too
    ``with_operators``. What is recorded comes last: what
    cannot be may leave a device lost.
    """
    batch = len(images)
    levels = [*map(str, LEVELS), *(["mixed"] if batch > 1 else [])]
    yield ("timm cudnn", "0"), partial(eager, on, networks["timm"], images, "0", True)
    yield ("timm", "0"), partial(eager, on, networks["timm"], images, "0", False)
    if "published" in networks:
        for level in map(str, LEVELS):
            yield (
                ("published", level),
                partial(eager, on, networks["published"], images, level, False),
            )
    for contender in ("ours", "operators"):
        for level in levels:
            yield (contender, level), partial(eager, on, networks[contender], images, level, False)
    yield ("timm graph", "0"), partial(recorded, on, networks["timm"], images, "0", True)
    graphs = [("ours", level) for level in levels]
    graphs += [("operators", str(level)) for level in LEVELS if with_operators]
    for contender, level in graphs:
        yield (
            (f"{contender} graph", level),
            partial(recorded, on, networks[contender], images, level, False),
        )


def eager(
    on: Accelerator, network: Forward, images: Tensor, level: str, cudnn: bool
) -> tuple[Call, float]:
    """Operator by operator, with or without cuDNN's attention."""
    r = r_of(level, len(images))

    def call() -> Tensor:
        on.allow_cudnn_attention(cudnn)
        return network(images, r)

    call()
    return call, on.peak_bytes(call) / 1e6


def recorded(
    on: Accelerator, network: Forward, images: Tensor, level: str, cudnn: bool
) -> tuple[Call, float]:
    """As one graph; its memory is what recording took, and stays."""
    call, _ = eager(on, network, images, level, cudnn)
    on.free()
    replays: list[Call] = []
    peak = on.peak_bytes(lambda: replays.append(on.record(call)))
    return replays[0], peak / 1e6


def similarity(logits: dict[Key, Tensor], contender: str, level: str) -> float:
    """Cosine of the first image's logits and those of timm at r=0, else of ours without a graph."""
    mine = logits[contender, level]
    for key in (("timm", "0"), ("timm cudnn", "0")) if level == "0" else (("ours", level),):
        if key in logits:
            return cosine(mine, logits[key])
    return 1.0


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two rows of logits."""
    return F.cosine_similarity(one, other).item()


if __name__ == "__main__":
    begin(main)
