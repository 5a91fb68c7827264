"""Commands that use the models in this very process, without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from server.allocator import keep_freed_memory, map_large_blocks
from server.catalog.entries import ModelSpec, read_catalog
from server.engine.device.placement import (
    choose_kernels,
    make_current,
    pick_device,
    pick_dtype,
    set_threads,
)
from server.engine.device.self_check import KERNELS
from server.engine.execution.prediction import Prediction
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.errors import ConfigError
from server.imaging.decode import decode
from server.imaging.visualization import draw
from server.ipc.messages import OutputKind
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule


def pick_model(settings: ModelSettings, name: str) -> ModelSpec:
    """The catalog's model called ``name``, or its first. Raises `ConfigError` if there is none of that name."""
    specs = read_catalog(settings.config, settings.models)
    for spec in specs:
        if name in ("", spec.name):
            return spec
    raise ConfigError(
        f"there is no model {name!r}; there are {', '.join(spec.name for spec in specs)}"
    )


def load_runner(settings: ModelSettings, spec: ModelSpec) -> Runner:
    """``spec`` on the device and in the dtype of the settings. Raises `ConfigError` if it cannot be loaded."""
    set_threads(settings.threads)
    device = pick_device(settings.device)
    make_current(device)
    choose_kernels(device)
    map_large_blocks()
    loaded = load_model(spec, device, pick_dtype(settings.dtype, device))
    if loaded.acceleration != KERNELS:
        keep_freed_memory()
    return Runner(loaded, device)


def parse_schedule(runner: Runner, text: str) -> Schedule:
    """``text`` as a schedule that fits the model. Raises `ConfigError` if it is none, or too long."""
    try:
        schedule = Schedule.parse(text)
        runner.tokens(schedule)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return schedule


def classify(settings: ModelSettings, image: Path, r: str, model: str, top_k: int) -> int:
    """Print the best classes of one image file."""
    encoded = read_file(image)
    runner = load_runner(settings, pick_model(settings, model))
    labels = runner.model.labels
    schedule = parse_schedule(runner, r)
    if not labels:
        raise ConfigError(f"model {runner.model.spec.name} has no classifier")
    prediction, _ = run_one(runner, encoded, schedule, min(top_k, len(labels)), "classes")
    for score, index in zip(prediction.scores, prediction.classes, strict=True):
        print(f"{score:7.4f}  {labels[index]}")
    print(tokens_left(runner, schedule))
    return 0


def visualize(settings: ModelSettings, image: Path, r: str, model: str, output: Path) -> int:
    """Write the picture of what merging does to one image file."""
    encoded = read_file(image)
    runner = load_runner(settings, pick_model(settings, model))
    schedule = parse_schedule(runner, r)
    prediction, pixels = run_one(runner, encoded, schedule, 0, "source")
    picture = draw(
        pixels, np.frombuffer(prediction.source, "<i4"), runner.model.prefix, runner.model.grid
    )
    try:
        picture.save(output)
    except ValueError as error:
        raise ConfigError(f"{output} ends as no picture file does; use .png") from error
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from error
    print(f"{output}: {tokens_left(runner, schedule)}")
    return 0


def read_file(path: Path) -> bytes:
    """The bytes of ``path``. Raises `ConfigError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def run_one(
    runner: Runner, encoded: bytes, schedule: Schedule, top_k: int, want: OutputKind
) -> tuple[Prediction, npt.NDArray[np.uint8]]:
    """What one encoded image gives, and the pixels that the model saw, ``uint8 (C, H, W)``.

    Raises:
        RequestError: it cannot be decoded.
    """
    defaults = Settings.model_fields
    pixels = decode(
        encoded,
        runner.model.transform,
        defaults["max_pixels"].default,
        defaults["max_side"].default,
    )
    (prediction,) = runner.run(np.stack([pixels]), [schedule], [top_k], [want])
    return prediction, pixels


def tokens_left(runner: Runner, schedule: Schedule) -> str:
    """What ``schedule`` leaves, in words."""
    tokens = runner.tokens(schedule)
    return f"r={schedule}: {tokens[-1]} of {tokens[0]} tokens left"


def print_models(settings: ModelSettings) -> int:
    """Print every model of the catalog, and what each default level of r leaves and costs."""
    levels = Settings.model_fields["levels"].default
    table = Table(
        "model",
        "architecture",
        "input",
        "classes",
        *(f"r={r}" for r in levels),
        caption="tokens, FLOPs",
    )
    for spec in read_catalog(settings.config, settings.models):
        runner = load_runner(settings, spec)
        cost = runner.model.network.cost()
        cells = [
            f"{tokens[-1]}, {cost.relative(tokens):.0%}"
            for tokens in (runner.tokens(Schedule.constant(r)) for r in levels)
        ]
        size = "x".join(map(str, runner.model.transform.size))
        table.add_row(spec.name, spec.timm, size, str(len(runner.model.labels)), *cells)
    Console(width=None if Console().is_terminal else 160).print(table)
    return 0
