"""The command line: ``tome-serve serve | models | classify | visualize | evaluate | load | top``.

Imports are late: ``--help`` and a wrong flag should answer at once, and the engine process should
be on its way before the API imports what it needs itself.
"""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from server.errors import ConfigError, EngineStartError, RequestError
from server.settings import ModelSettings, Settings
from tome_core.schedule import Schedule

USAGE = """usage: tome-serve COMMAND [flags]

Token-merged Vision Transformers over HTTP; every request chooses r, the tokens merged away in each block.

commands:
  serve             start the HTTP server
  models            list the models that would be served, with the cost of each level of r
  classify IMAGE    classify one image here, without a server
  visualize IMAGE   draw which patches of an image are merged
  evaluate [DATA]   accuracy and images/s for each r, over a folder of labelled images or the Fashion-MNIST files
  load [IMAGE]      send a server requests by plan, and report latency, goodput and the r that was used
  top               watch a server: throughput by r, latency, speed-up, queue, refusals

`tome-serve COMMAND --help` lists a command's flags. Every flag is also an environment variable: --max-batch is
TOME_MAX_BATCH."""

Command = TypeVar("Command", bound=BaseSettings)


class ModelsCommand(ModelSettings):
    """List the models that would be served, with the cost of each level of r."""


class ClassifyCommand(ModelSettings):
    """Classify one image here, without a server."""

    image: CliPositionalArg[Path] = Field(description="Image file.")
    r: str = Field("0", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Which of the models; default the first.")
    top_k: int = Field(5, ge=1, description="How many classes to print.")


class VisualizeCommand(ModelSettings):
    """Draw which patches of an image are merged: each region in its mean colour, outlined."""

    image: CliPositionalArg[Path] = Field(description="Image file.")
    r: str = Field("16", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Which of the models; default the first.")
    output: Path = Field(
        Path("merged.png"), description="File to write, also -o; its ending says the format."
    )


class EvaluateCommand(ModelSettings):
    """Accuracy and images/s for each r, over a folder of labelled images or the Fashion-MNIST files."""

    data: CliPositionalArg[Path | None] = Field(
        None,
        description=(
            "Folder with one sub-folder of images per class, or with the Fashion-MNIST test files."
        ),
    )
    r: str = Field(
        "0 4 8 11 12 13 16 17 20 25 15:-0.5 16:-1", description="Schedules, separated by spaces."
    )
    model: str = Field("", description="Which of the models; default the first.")
    batch: int = Field(50, ge=1, le=1024, description="Images in one forward pass.")
    limit: int | None = Field(None, ge=1, description="Only the first so many images.")
    profile: Path | None = Field(
        None, description="Write the table as JSON here, for a model's `profile`."
    )
    plot: Path | None = Field(
        None, description="Draw accuracy against measured speed-up here, as PNG, SVG or PDF."
    )
    beside: Path | None = Field(None, description="Profile of another model, to be drawn beside.")

    @field_validator("r")
    @classmethod
    def _are_schedules(cls, value: str) -> str:
        return " ".join(str(Schedule.parse(part)) for part in value.split())


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure that is explained on stderr, 2 for wrong usage."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    commands = {
        "serve": _serve,
        "models": _models,
        "classify": _classify,
        "visualize": _visualize,
        "evaluate": _evaluate,
        "load": _load,
        "top": _top,
    }
    if name not in commands:
        print(f"tome-serve: there is no command {name!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    try:
        return commands[name](rest)
    except (ConfigError, EngineStartError, RequestError) as error:
        print(f"tome-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _settings(kind: type[Command], name: str, arguments: list[str]) -> Command:
    """Read ``kind`` from flags and environment; what is wrong is said in one line each."""
    # pydantic-settings gives a field of one letter a single dash; people write --r as in the query.
    flags = [
        re.sub(r"^--r(?=$|=)", "-r", re.sub(r"^-o(?=$|=)", "--output", argument))
        for argument in arguments
    ]
    flags = [re.sub(r"^--json(?=$|=)", "--json-file", flag) for flag in flags]
    try:
        return kind(_cli_parse_args=flags, _cli_prog_name=f"tome-serve {name}")
    except ValidationError as error:
        lines = [
            f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("\n".join(["the settings are wrong:", *lines])) from None


def _serve(arguments: list[str]) -> int:
    settings = _settings(Settings, "serve", arguments)
    from server.api_keys import Secrets, read_keys
    from server.catalog.entries import read_catalog
    from server.engine_client.launch import launch
    from server.metrics import Metrics

    # Until the server has its own handlers: nothing was accepted yet, so a stop is a clean one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    read_catalog(
        settings.config, settings.models
    )  # a mistake in the file should not wait for torch
    keys = read_keys(Secrets())
    metrics = Metrics(settings.levels)
    engine = launch(settings, metrics)
    from server.api.lifecycle import run

    return run(settings, keys, engine, metrics)


def _models(arguments: list[str]) -> int:
    from server.commands.offline import print_models

    return print_models(_settings(ModelsCommand, "models", arguments))


def _classify(arguments: list[str]) -> int:
    command = _settings(ClassifyCommand, "classify", arguments)
    from server.commands.offline import classify

    return classify(command, command.image, command.r, command.model, command.top_k)


def _visualize(arguments: list[str]) -> int:
    command = _settings(VisualizeCommand, "visualize", arguments)
    from server.commands.offline import visualize

    return visualize(command, command.image, command.r, command.model, command.output)


def _evaluate(arguments: list[str]) -> int:
    command = _settings(EvaluateCommand, "evaluate", arguments)
    from server.catalog.profiles import profile_name, read_profile, write_profile
    from server.commands.datasets import open_dataset
    from server.commands.evaluate import evaluate
    from server.commands.plotting import plot_profiles

    others = (
        {}
        if command.beside is None
        else {profile_name(command.beside): read_profile(command.beside)}
    )
    data = open_dataset(command.data, command.limit)
    rows, about = evaluate(command, data, command.r.split(), command.model, command.batch)
    if command.profile is not None:
        write_profile(command.profile, rows, about)
    if command.plot is not None:
        plot_profiles({str(about["model"]): rows, **others}, command.plot)
    return 0


def _load(arguments: list[str]) -> int:
    from server.load.command import LoadCommand, load

    return load(_settings(LoadCommand, "load", join_repeated("--r", arguments)))


def join_repeated(flag: str, arguments: list[str]) -> list[str]:
    """``arguments`` with all values of ``flag`` as one, separated by spaces: a schedule may have commas."""
    rest = []
    values = []
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.partition("=")
        if name not in (flag, flag[1:]):
            rest.append(argument)
        elif equals or (value := next(left, "")):
            values.append(value)
        else:
            return arguments  # nothing follows: the parser says so
    return [*rest, f"{flag}={' '.join(values)}"] if values else rest


def _top(arguments: list[str]) -> int:
    from server.top.command import TopCommand, top

    return top(_settings(TopCommand, "top", arguments))
