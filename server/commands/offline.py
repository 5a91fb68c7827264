"""Commands that run a model in this process, without a server."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from rich.table import Table

from server.allocator import keep_freed_memory, map_large_blocks
from server.audio.picture import oriented_grid, oriented_source, spectrogram
from server.catalog.entries import ModelSpec, open_catalog, read_catalog
from server.commands.console import table_console
from server.commands.inputs import Row, read_inputs
from server.engine.device.placement import (
    configure_pytorch,
    pick_device,
    pick_dtype,
    set_current_device,
    set_threads,
)
from server.engine.device.self_check import KERNELS
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import load_model
from server.errors import ConfigError
from server.imaging.visualization import draw_regions
from server.ipc.messages import OutputKind
from server.ipc.shared_memory import describe_slots, largest_input_bytes
from server.media.transforms import ImageTransform, VideoTransform, input_shape
from server.settings import ModelSettings, Settings
from server.video.contact_sheet import draw_clip
from tome_core.backends.cpu.library import limit_isa
from tome_core.schedule import Schedule

STANDARD_INPUT = Path("-")
DEFAULT_LEVELS: Sequence[int] = Settings.model_fields["levels"].default


def pick_model(
    settings: ModelSettings,
    name: str,
    clips: int | None = None,
    crops: int | None = None,
    profiles: bool = False,
    text: str = "",
) -> ModelSpec:
    """Return the model ``name`` of the catalog, by default its first.

    Args:
        clips, crops: instead of those of the entry, of a model of video; None for these.
        profiles: whether its profile is needed. It is for a server, and may be what `evaluate` is
            about to write.
        text: the only label set that it then has; empty for those of the entry.

    Raises:
        ConfigError: there is no model of that name, or no such label set of it.
    """
    views = {"clips": clips, "crops": crops}
    given: dict[str, Any] = {field: value for field, value in views.items() if value is not None}
    catalog = open_catalog(settings.config, settings.models, profiles=profiles)
    spec = catalog.find(name) if name else catalog.specs[0]
    if text:
        given["text"] = _pick_label_set(spec, text)
    return spec.model_copy(update=given)


def _pick_label_set(spec: ModelSpec, name: str) -> dict[str, Path]:
    files = spec.label_files
    if name not in files:
        known = f"there are {', '.join(files)}" if files else "it has none"
        raise ConfigError(f"model {spec.name} has no label set {name!r}; {known}")
    return {name: files[name]}


def label_set_versions(spec: ModelSpec) -> list[list[Any]]:
    """Return path, size and time of change of each file of labels of a model."""
    stats = [(path, path.stat()) for path in spec.label_files.values()]
    return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def load_runner(
    settings: ModelSettings,
    spec: ModelSpec,
    levels: Sequence[int] = DEFAULT_LEVELS,
) -> Runner:
    """Load ``spec`` on the device and in the dtype of the settings.

    Args:
        levels: of models of images whose entry has none.

    Raises:
        ConfigError: it cannot be loaded.
    """
    limit_isa(settings.cpu_isa)
    set_threads(settings.threads)
    device = pick_device(settings.device)
    set_current_device(device)
    configure_pytorch(device)
    map_large_blocks()
    dtype = pick_dtype(settings.dtype, device)
    loaded = load_model(spec, device, dtype, levels)
    if loaded.acceleration != KERNELS:
        keep_freed_memory()
    return Runner(loaded, device)


def parse_schedule(runner: Runner, text: str) -> Schedule:
    """Parse a schedule that fits the model.

    Raises:
        ConfigError: ``text`` is not a schedule, or has more blocks than the model.
    """
    try:
        schedule = Schedule.parse(text)
        runner.tokens(schedule)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return schedule


def parse_schedules(runner: Runner, texts: Sequence[str]) -> list[Schedule]:
    """Parse schedules that fit the model, each once, after r=0: the baseline of what is measured.

    Raises:
        ConfigError: as `parse_schedule`.
    """
    schedules = [parse_schedule(runner, text) for text in ("0", *texts)]
    return list({str(schedule): schedule for schedule in schedules}.values())


def run_conditions(runner: Runner) -> dict[str, object]:
    """Return what speeds depend on besides the model: device, dtype and threads."""
    return {
        "device": str(runner.device),
        "dtype": runner.dtype,
        "threads": torch.get_num_threads(),
    }


def visualize(
    settings: ModelSettings,
    file: Path,
    r: str,
    model: str,
    output: Path,
    *,
    clips: int | None = None,
    crops: int | None = None,
) -> int:
    """Draw which patches of one file are merged, and write the picture to ``output``.

    Of a sound or a video this is the first window. For ``clips`` and ``crops`` see `pick_model`.
    """
    encoded = read_file(file)
    runner = load_runner(settings, pick_model(settings, model, clips, crops))
    schedule = parse_schedule(runner, r)
    prediction, row = run_one(runner, encoded, schedule, 0, "source")
    picture = _draw(runner, row, np.frombuffer(prediction.source, "<i4"))
    try:
        picture.save(output)
    except ValueError as error:
        raise ConfigError(f"{output} has no suffix of a picture file; use .png") from error
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror or error}") from error
    print(f"{output}: {tokens_left(runner, schedule)}")
    return 0


def _draw(runner: Runner, row: Row, source: npt.NDArray[np.int32]) -> Image:
    """Draw the merged regions of one input of the model, ``(C, H, W)``."""
    model = runner.model
    transform = model.transform
    if isinstance(transform, ImageTransform):
        return draw_regions(row, source, model.prefix, model.grid)
    if isinstance(transform, VideoTransform):
        return draw_clip(row, source, model.prefix, model.grid, transform)
    upright = oriented_source(source, model.prefix, model.grid, transform)
    grid = oriented_grid(model.grid, transform)
    return draw_regions(spectrogram(row, transform), upright, model.prefix, grid)


def read_file(path: Path) -> bytes:
    """Return the bytes of ``path``, or of standard input if it is ``-``.

    Raises:
        ConfigError: it cannot be read, or standard input is empty.
    """
    if path == STANDARD_INPUT:
        content = sys.stdin.buffer.read()
        if not content:
            raise ConfigError("standard input is empty; pipe a file into it")
        return content
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def check_readable(path: Path) -> None:
    """Raise `ConfigError` as `read_file`; standard input is not looked at."""
    if path == STANDARD_INPUT:
        return
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder; -o labels.csv classifies its pictures, into that file"
        )
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error


def run_one(
    runner: Runner,
    encoded: bytes,
    schedule: Schedule,
    top_k: int,
    output: OutputKind,
) -> tuple[ImageOutput, Row]:
    """Run an encoded image, or the first window of other media; return its prediction and input.

    The limits are the server's defaults.

    Raises:
        RequestError: it cannot be decoded.
    """
    row = read_inputs(encoded, runner.model.transform).rows[0]
    (prediction,) = runner.run([ImageInput(row, schedule, top_k, output)])
    return prediction, row


def tokens_left(runner: Runner, schedule: Schedule) -> str:
    """Return a sentence that says how many tokens ``schedule`` leaves."""
    tokens = runner.tokens(schedule)
    return f"r={schedule}: {tokens[-1]} of {tokens[0]} tokens left"


def print_models(settings: ModelSettings, slots: int) -> int:
    """Print the models of the catalog, with the tokens and FLOPs of each of their levels of r.

    Models that follow one another and have the same levels share a table. Then follows the memory
    of as many ``slots`` as a server has, which are of the largest input's size.
    """
    console = table_console()
    sizes = []
    runners = (
        load_runner(settings, spec) for spec in read_catalog(settings.config, settings.models)
    )
    for levels, group in itertools.groupby(runners, key=_levels):
        level_names = [f"r={level}" for level in levels]
        table = Table(
            "model",
            "architecture",
            "takes",
            "input",
            "classes",
            *level_names,
            caption="tokens, FLOPs",
        )
        for runner in group:
            table.add_row(*_model_row(runner))
            sizes.append(runner.model.transform.size)
        console.print(table)
    print(describe_slots(slots, largest_input_bytes(sizes)))
    return 0


def _levels(runner: Runner) -> tuple[int, ...]:
    return runner.model.levels


def _model_row(runner: Runner) -> list[str]:
    """Return the name of a model, what it is, and the cost of each of its levels."""
    model = runner.model
    size = "x".join(map(str, input_shape(model.transform)))
    costs = [_level_cost(runner, level) for level in model.levels]
    takes = str(model.transform.modality)
    return [model.spec.name, model.spec.timm, takes, size, str(len(model.labels)), *costs]


def _level_cost(runner: Runner, level: int) -> str:
    """Return the tokens after the last block, and the FLOPs as a share of those at r=0."""
    tokens = runner.tokens(Schedule.constant(level))
    relative_flops = runner.model.network.cost().relative(tokens)
    return f"{tokens[-1]}, {relative_flops:.0%}"
