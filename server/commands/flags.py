"""Flags of the commands that run a model in this process, and how all flags are read."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from server.errors import ConfigError
from server.settings import ModelSettings
from tome_core.schedule import Schedule

# pydantic-settings gives a field of one letter a single dash, and knows each flag by one name.
_ALIASES = {"--r": "-r", "-o": "--output", "--json": "--json-file"}

Command = TypeVar("Command", bound=BaseSettings)


class ModelsCommand(ModelSettings):
    """List the models that would be served, with the cost of each level of r."""

    check: str | None = Field(
        None,
        description="Name of a model of timm: say whether merging supports it, and list nothing.",
    )


class ClassifyCommand(ModelSettings):
    """Classify one image here, without a server."""

    image: CliPositionalArg[Path] = Field(description="Image file.")
    r: str = Field("0", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Name of the model; default: the first.")
    top_k: int = Field(5, ge=1, description="Number of classes to print.")


class VisualizeCommand(ModelSettings):
    """Draw which patches of an image are merged: each region in its mean colour, outlined."""

    image: CliPositionalArg[Path] = Field(description="Image file.")
    r: str = Field("16", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Name of the model; default: the first.")
    output: Path = Field(
        Path("merged.png"),
        description="File to write, also -o; its suffix selects the format.",
    )


class EvaluateCommand(ModelSettings):
    """Measure accuracy and images/s for each r, over labelled images or Fashion-MNIST files."""

    data: CliPositionalArg[Path | None] = Field(
        None,
        description=(
            "Folder with one sub-folder of images per class, or with the Fashion-MNIST test files."
        ),
    )
    r: str = Field(
        "0 4 8 11 12 13 16 17 20 25 15:-0.5 16:-1",
        description="Schedules, separated by spaces.",
    )
    model: str = Field("", description="Name of the model; default: the first.")
    batch: int = Field(50, ge=1, le=1024, description="Images in one forward pass.")
    limit: int | None = Field(None, ge=1, description="Largest number of images to evaluate.")
    profile: Path | None = Field(
        None,
        description="Write the table to this JSON file, for a model's `profile`.",
    )
    plot: Path | None = Field(
        None,
        description="Plot accuracy against measured speed-up to this PNG, SVG or PDF file.",
    )
    beside: Path | None = Field(
        None,
        description="Profile of another model, to be drawn in the same plot.",
    )

    @field_validator("r")
    @classmethod
    def _normalize_schedules(cls, value: str) -> str:
        schedules = [Schedule.parse(text) for text in value.split()]
        return " ".join(str(schedule) for schedule in schedules)


def read_flags(command: type[Command], name: str, arguments: list[str]) -> Command:
    """Read ``command`` from flags and environment.

    Raises:
        ConfigError: a value is not allowed. The message has one line for each.
    """
    flags = [_replace_alias(argument) for argument in arguments]
    try:
        return command(_cli_parse_args=flags, _cli_prog_name=f"tome-serve {name}")
    except ValidationError as error:
        lines = ["the settings are wrong:"]
        for mistake in error.errors():
            field = ".".join(map(str, mistake["loc"])) or "settings"
            lines.append(f"{field}: {mistake['msg']}")
        raise ConfigError("\n".join(lines)) from None


def _replace_alias(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return _ALIASES.get(name, name) + equals + value


def join_repeated(flag: str, arguments: list[str]) -> list[str]:
    """Join all values of ``flag`` into one, separated by spaces: a schedule may have commas."""
    others = []
    values = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name not in (flag, flag[1:]):
            others.append(argument)
            continue
        if not equals:
            value = next(remaining, "")
            if not value:
                return arguments  # the parser reports the missing value
        values.append(value)
    if not values:
        return others
    return [*others, f"{flag}={' '.join(values)}"]
