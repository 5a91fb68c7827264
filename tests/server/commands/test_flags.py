"""Flags are read under their aliases, repeated, and with mistakes."""

from pathlib import Path
from typing import TypeVar

import click
import pytest
from pydantic_settings import BaseSettings

from server.commands.flags import (
    ClassifyCommand,
    EvaluateCommand,
    VisualizeCommand,
)
from server.commands.settings_command import settings_command
from server.errors import ConfigError
from tome_load.command import LoadCommand

Settings = TypeVar("Settings", bound=BaseSettings)


def read(settings: type[Settings], arguments: list[str], repeated: str = "") -> Settings:
    """The settings that a command is called with."""
    called: list[Settings] = []

    def run(settings: Settings) -> int:
        called.append(settings)
        return 0

    command = settings_command("x", settings, run, repeated=repeated)
    command.main(arguments, standalone_mode=False)
    return called[0]


@pytest.mark.parametrize("flag", [["--r", "8"], ["--r=8"], ["-r", "8"]])
def test_r_may_have_one_dash_or_two(flag: list[str]) -> None:
    assert read(ClassifyCommand, ["x.png", *flag]).r == "8"


@pytest.mark.parametrize("flag", [["-o", "y.png"], ["-o=y.png"]])
def test_a_short_flag_names_the_output(flag: list[str]) -> None:
    command = read(VisualizeCommand, ["x.png", *flag])
    assert command.output == Path("y.png")


def test_schedules_are_normalized() -> None:
    command = read(EvaluateCommand, ["--r", "8  16:-1.0"])
    assert command.r == "8 16:-1"


def test_every_wrong_flag_gets_a_line() -> None:
    flags = ["x.png", "--top-k", "0", "--threads", "-1"]
    with pytest.raises(ConfigError) as caught:
        read(ClassifyCommand, flags)
    first, *mistakes = str(caught.value).splitlines()
    assert first == "the settings are wrong:"
    assert {line.partition(":")[0] for line in mistakes} == {"top_k", "threads"}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["a.png", "--r", "3", "b.png", "--json"], ["a.png", "b.png"]),
        (["--json", "a.png", "-r=8", "-"], ["a.png", "-"]),
        (["a,b.png", "[1].png", '"q".png', "{.png", "12", "null", " c.png"], None),
        (["--", "-x.png", "--json"], ["-x.png", "--json"]),
        (["caf\xe9.png", "\udcff.png"], None),
    ],
)
def test_names_of_files_are_taken_as_they_are(
    arguments: list[str], names: list[str] | None
) -> None:
    command = read(ClassifyCommand, arguments)
    assert command.files == [Path(name) for name in names or arguments]
    assert command.json_lines == ("--json" in arguments and "--" not in arguments)


def test_files_to_send_are_taken_as_they_are() -> None:
    command = read(LoadCommand, ["a,b.png", "--json", "x.json", "[1].png"])
    assert command.files == [Path("a,b.png"), Path("[1].png")]
    assert command.json_file == Path("x.json")


@pytest.mark.parametrize(
    ("arguments", "r"),
    [
        (["--r", "0", "x.png", "--r=30,0,5", "-r", "8"], "0 30,0,5 8"),
        (["--r", "0 8", "-r=16"], "0 8 16"),
        (["--rate", "5"], ""),
    ],
)
def test_values_of_a_repeated_flag_are_joined(arguments: list[str], r: str) -> None:
    assert read(LoadCommand, arguments, repeated="r").r == r


def test_of_other_flags_the_last_value_counts() -> None:
    command = read(ClassifyCommand, ["x.png", "--r", "4", "--top-k=1", "-r=8", "--top-k=2"])
    assert (command.r, command.top_k) == ("8", 2)


def test_an_empty_value_counts_as_not_given() -> None:
    command = read(VisualizeCommand, ["x.png", "--r=", "--output="])
    assert (command.r, command.output) == ("16", Path("merged.png"))


def test_an_argument_without_a_default_is_required() -> None:
    with pytest.raises(click.MissingParameter):
        read(VisualizeCommand, [])
