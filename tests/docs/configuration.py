"""Writes ``docs/configuration.md`` from the settings themselves: ``python -m
tests.docs.configuration``.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from server.media.settings import MediaSettings
from server.settings import ModelSettings, Settings

FILE = Path(__file__).parents[2] / "docs" / "configuration.md"

BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}

TEXT = """# Configuration

<!-- Written by `make docs` from server/settings.py and server/media/settings.py. -->

A setting is a flag of `tome-serve serve` or an environment variable. A flag has precedence over
the variable, and the variable over the default. An empty variable counts as not set. Lists are
separated by commas. An invalid value stops the start with one sentence that says why. The same
settings are listed by `tome-serve serve --help`.

## Models and devices

The commands `models`, `classify`, `visualize`, `evaluate` and `tune` take these settings too,
with one device.

{models}

Without `TOME_CONFIG` and `TOME_MODELS` the bundled model is served; with one of them, only the
models that it names. [README.md](../README.md#models) and [checkpoints.md](checkpoints.md) describe
the fields of the TOML file.

With `TOME_DTYPE=auto` on a CPU that multiplies bfloat16 natively, each model is timed at start in
float32 and in bfloat16: its first block, on one thread, in less than a second. The faster dtype
serves, unless the self check rejects it. The log, `dtype_speedup` in `GET /models` and the metric
`tome_dtype_speedup` say which one serves and its speed relative to the other. Where results must
have the same bits on all machines, set `TOME_DTYPE`.

`TOME_CPU_ISA` limits the kernels of this package: `avx512` those in float32, which need AVX-512 F,
BW, DQ and VL, and `avx512_bf16` those in bfloat16 as well. A processor that lacks what is asked for
runs what it has, and the log says so. PyTorch's operators, which run the rest, are not limited.

## The server

{server}

An input that is admitted lies in a slot of shared memory. There are as many slots as
`TOME_QUEUE_LIMIT`, and each holds the largest input of any model in float32: 0.6 MB for images of
224 pixels, 9.6 MB for clips of 16 such frames. Memory is allocated where inputs were written, and
pixels of 8 bits fill the first quarter of a slot. `tome-serve models` prints what all slots take at
most.

## Sound and video

{media}

The memory of a decode worker is bounded as well: at 600 MB where no model takes video, else at
1,000 MB. A body that takes more gets a 413, as one that takes longer than the timeout.

## API keys

Without keys, no request needs one. Keys have no flags, because every process of a machine can read
the command lines of the others.

| variable | what |
| --- | --- |
| `TOME_API_KEYS` | keys, separated by commas |
| `TOME_API_KEYS_FILE` | file with one key a line; added to the keys of `TOME_API_KEYS` |
| `TOME_ADMIN_KEY` | key of `/admin/reload`, which is not there without it; no API key opens it |
| `TOME_ADMIN_KEY_FILE` | file whose first line is such a key |

`tome-serve load` sends the key of `TOME_API_KEY`.
"""


def page() -> str:
    """The whole page."""
    fields = Settings.model_fields
    models = {name: fields[name] for name in ModelSettings.model_fields}
    media = {name: fields[name] for name in MediaSettings.model_fields}
    server = {name: fields[name] for name in fields if name not in models | media}
    return TEXT.format(models=table(models), server=table(server), media=table(media))


def table(fields: dict[str, FieldInfo]) -> str:
    """Fields as a table of Markdown."""
    rows = [
        (
            f"`--{name.replace('_', '-')}`",
            f"`TOME_{name.upper()}`",
            default(field),
            allowed(field),
            what(field),
        )
        for name, field in fields.items()
    ]
    head = [("flag", "variable", "default", "allowed", "what"), ("---",) * 5]
    return "\n".join(f"| {' | '.join(row)} |" for row in (*head, *rows))


def what(field: FieldInfo) -> str:
    """The description, which may not break the table."""
    return (field.description or "").removesuffix(".").replace("|", "\\|")


def default(field: FieldInfo) -> str:
    """The default as one would write it."""
    value = field.default
    if value is None or value == ():
        return ""
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def allowed(field: FieldInfo) -> str:
    """The values that are allowed, where type or bounds say so."""
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(field.annotation))
    bounds = {
        name: getattr(rule, name) for rule in parts(field) for name in BOUNDS if hasattr(rule, name)
    }
    if set(bounds) == {"ge", "le"}:
        return f"{bounds['ge']} to {bounds['le']}"
    return ", ".join(BOUNDS[name].format(bound) for name, bound in bounds.items())


def parts(field: FieldInfo) -> list[Any]:
    """The rules that pydantic keeps for a field, also those that it moved into its type."""
    return [
        *field.metadata,
        *(rule for part in typing.get_args(field.annotation) for rule in typing.get_args(part)),
    ]


if __name__ == "__main__":
    FILE.write_text(page())
