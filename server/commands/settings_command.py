"""How the fields of a settings class become the flags and arguments of a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

from server.errors import ConfigError

# The fields that are arguments, not flags, as all are that have no default.
_ARGUMENTS = ("files", "data")
# Further names of a flag. A field cannot be called json, which is a method of every model.
_OTHER_NAMES = {
    "r": "-r",
    "output": "-o",
    "top_k": "--top",
    "json_file": "--json",
    "json_lines": "--json",
}
_WITH_SHORT_FLAG = frozenset({"r", "output"})
_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", str: "TEXT"}

Command = TypeVar("Command", bound=BaseSettings)


def settings_command(
    name: str,
    settings: type[Command],
    run: Callable[[Command], int],
    *,
    help_text: str | None = None,
    repeated: str = "",
) -> click.Command:
    """Return a command whose flags and arguments are the fields of ``settings``; it calls ``run``.

    Args:
        name: of the command.
        settings: the class of what ``run`` is called with.
        run: returns the exit code.
        help_text: says what the command does; default: the docstring of ``settings``.
        repeated: the field whose flag may be given several times. The last value of others counts.
    """

    def callback(**given: Any) -> int:
        return run(read_settings(settings, given))

    parameters = [
        _parameter(field_name, field, multiple=field_name == repeated)
        for field_name, field in settings.model_fields.items()
    ]
    help_text = help_text or settings.__doc__
    return click.Command(name, params=parameters, callback=callback, help=help_text)


def read_settings(settings: type[Command], given: dict[str, Any]) -> Command:
    """Read ``settings`` from what flags have ``given``, else from the environment.

    An empty value counts as not given, there and here.

    Raises:
        ConfigError: a value is not allowed. The message has one line for each.
    """
    values = {name: value for name, value in given.items() if value not in (None, (), "")}
    for name in _WITH_SHORT_FLAG.intersection(values):
        texts = values[name]
        if isinstance(texts, str):
            texts = [texts]
        # click leaves the sign of -r=8.
        values[name] = " ".join(text.removeprefix("=") for text in texts)
    try:
        return settings(**values)
    except ValidationError as error:
        lines = ["the settings are wrong:"]
        for mistake in error.errors():
            field_name = ".".join(map(str, mistake["loc"])) or "settings"
            lines.append(f"{field_name}: {mistake['msg']}")
        raise ConfigError("\n".join(lines)) from None


def _parameter(name: str, field: FieldInfo, *, multiple: bool) -> click.Parameter:
    """Return the argument or the flag of a field; its value stays text, for pydantic to read."""
    is_list = get_origin(field.annotation) is list
    if name in _ARGUMENTS or field.is_required():
        return click.Argument(
            [name],
            nargs=-1 if is_list else 1,
            required=field.is_required(),
            metavar=_argument_metavar(name, field),
        )
    flag = "--" + name.replace("_", "-")
    is_switch = field.annotation is bool
    names = [f"{flag}/--no-{flag[2:]}" if is_switch else flag, name]
    if name in _OTHER_NAMES:
        names.insert(0, _OTHER_NAMES[name])
    return click.Option(
        names,
        is_flag=is_switch,
        default=None,
        multiple=multiple,
        metavar=None if is_switch else _metavar(field.annotation),
        help=f"{field.description}{_default(field)}",
    )


def _argument_metavar(name: str, field: FieldInfo) -> str:
    metavar = name.upper()
    if not field.is_required():
        metavar = f"[{metavar}]"
    if get_origin(field.annotation) is list:
        metavar += "..."
    return metavar


def _metavar(annotation: Any) -> str:
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return f"[{'|'.join(map(str, get_args(kind)))}]"
        if kind in _METAVARS and get_origin(annotation) is not tuple:
            return _METAVARS[kind]
    return "LIST"


def _default(field: FieldInfo) -> str:
    """Return what is said of the default; nothing if it is empty, for then the text says it."""
    default = field.get_default()
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    if isinstance(default, float):
        default = f"{default:g}"
    if default in (None, "") or isinstance(default, bool):
        return ""
    return f"  [default: {default}]"
