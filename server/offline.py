"""Commands that use the models in this very process, without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from server.catalog import ModelSpec, read_catalog
from server.decode import decode
from server.engine.device import pick_device, pick_dtype, set_threads
from server.engine.loading import load_model
from server.engine.runner import Runner
from server.errors import ConfigError
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule


def pick_model(settings: ModelSettings, name: str) -> ModelSpec:
    """The catalog's model called ``name``, or its first. Raises `ConfigError` if there is none of that name."""
    specs = read_catalog(settings.config, settings.models)
    for spec in specs:
        if name in ("", spec.name):
            return spec
    raise ConfigError(f"there is no model {name!r}; there are {', '.join(spec.name for spec in specs)}")


def load_runner(settings: ModelSettings, spec: ModelSpec) -> Runner:
    """``spec`` on the device and in the dtype of the settings. Raises `ConfigError` if it cannot be loaded."""
    set_threads(settings.threads)
    device = pick_device(settings.device)
    return Runner(load_model(spec, device, pick_dtype(settings.dtype, device)), device)


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
    try:
        encoded = image.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {image}: {error.strerror or error}") from error
    runner = load_runner(settings, pick_model(settings, model))
    schedule = parse_schedule(runner, r)
    defaults = Settings.model_fields
    limits = defaults["max_pixels"].default, defaults["max_side"].default
    pixels = decode(encoded, runner.model.transform, *limits)
    (prediction,) = runner.run(np.stack([pixels]), [schedule], [min(top_k, len(runner.model.labels))])
    for score, index in zip(prediction.scores, prediction.classes, strict=True):
        print(f"{score:7.4f}  {runner.model.labels[index]}")
    tokens = runner.tokens(schedule)
    print(f"r={schedule}: {tokens[-1]} of {tokens[0]} tokens left")
    return 0


def print_models(settings: ModelSettings) -> int:
    """Print every model of the catalog, and what each default level of r leaves and costs."""
    levels = Settings.model_fields["levels"].default
    table = Table("model", "architecture", "input", "classes", *(f"r={r}" for r in levels), caption="tokens, FLOPs")
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
