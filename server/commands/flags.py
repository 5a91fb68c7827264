"""Flags of the commands that run a model in this process, and how all flags are read."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_origin

from pydantic import Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliImplicitFlag, CliPositionalArg

from server.errors import ConfigError
from server.settings import ModelSettings
from tome_core.schedule import Schedule

# pydantic-settings gives a field of one letter a single dash, and knows each flag by one name. A
# field cannot be called json, which is a method of every model.
_ALIASES = {"--r": "-r", "-o": "--output"}
_JSON_FIELDS = ("json_file", "json_lines")

Command = TypeVar("Command", bound=BaseSettings)


class ModelsCommand(ModelSettings):
    """List the models that would be served, with the cost of each level of r."""

    check: str | None = Field(
        None,
        description="Name of a model of timm: say whether merging supports it, and list nothing.",
    )


class ClassifyCommand(ModelSettings):
    """Classify images here, without a server."""

    images: CliPositionalArg[list[Path]] = Field(
        [],
        description="Image files; - is standard input.",
        validate_default=True,
    )
    r: str = Field("0", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Name of the model; default: the first.")
    top_k: int = Field(5, ge=1, description="Number of classes to print.")
    json_lines: CliImplicitFlag[bool] = Field(
        False,
        description="Print one JSON object per image and line, also --json.",
    )

    @field_validator("images")
    @classmethod
    def _require_images(cls, value: list[Path]) -> list[Path]:
        if not value:
            raise ValueError("name an image file, or - for standard input")
        return value


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
    fields = command.model_fields
    end = arguments.index("--") if "--" in arguments else len(arguments)
    flags = [_replace_alias(argument, fields) for argument in arguments[:end]] + arguments[end:]
    values: dict[str, Any] = {}
    for field_name, field in fields.items():
        if get_origin(field.annotation) is list:
            flags, files = _split_files(flags, fields)
            values = {field_name: files} if files else {}
    try:
        return command(_cli_parse_args=flags, _cli_prog_name=f"tome-serve {name}", **values)
    except ValidationError as error:
        lines = ["the settings are wrong:"]
        for mistake in error.errors():
            field_name = ".".join(map(str, mistake["loc"])) or "settings"
            lines.append(f"{field_name}: {mistake['msg']}")
        raise ConfigError("\n".join(lines)) from None


def _flag(field_name: str) -> str:
    return "--" + field_name.replace("_", "-")


def _replace_alias(argument: str, fields: dict[str, FieldInfo]) -> str:
    name, equals, value = argument.partition("=")
    if name == "--json":
        names = [_flag(field) for field in _JSON_FIELDS if field in fields]
        name = names[0] if names else name
    return _ALIASES.get(name, name) + equals + value


def _split_files(
    arguments: list[str],
    fields: dict[str, FieldInfo],
) -> tuple[list[str], list[str]]:
    """Return the flags with their values, and all other arguments: files.

    pydantic-settings would split the name of a file at a comma, and read ``[1].png`` as a list;
    argparse would refuse files both before and after a flag.
    """
    switches = {"-h", "--help"}
    for name, field in fields.items():
        if field.annotation is bool:
            switches |= {_flag(name), _flag(f"no_{name}")}
    flags: list[str] = []
    files: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            files += remaining
        elif argument == "-" or not argument.startswith("-"):
            files.append(argument)
        else:
            flags.append(argument)
            if "=" not in argument and argument not in switches:
                flags += islice(remaining, 1)  # its value
    return flags, files


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
