"""A file of rows that are kept as soon as they are measured, so that a run can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from server.errors import ConfigError
from server.system.files import replace_text

# All that the rows of a file depend on, among it the number of "images".
About = Mapping[str, Any]
Row = TypeVar("Row")


def write_rows(path: Path, about: About, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace ``path`` as a whole.

    Raises:
        ConfigError: the file cannot be written.
    """
    replace_text(path, json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


def read_rows(
    path: Path,
    about: About,
    decode: Callable[[dict[str, Any], int], Row],
    what: str,
    replace: bool = False,
    strict: bool = False,
) -> dict[str, Row]:
    """Return the rows in ``path`` if they were measured as ``about`` says, else none.

    Args:
        decode: takes a row of the file and its number of images.
        what: the rows are results of, for messages.
        replace: allow to give up what is there.
        strict: refuse to give up any row.

    Raises:
        ConfigError: the file holds something else, or results over more images than ``about`` has,
            or if ``strict`` any that were measured in another way; and ``replace`` does not allow
            to give that up.
    """
    if not path.exists():
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        kept_about = kept["about"]
        images = kept["about"]["images"]
        results = {name: decode(row, images) for name, row in kept["rows"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if replace:
            return {}
        raise ConfigError(
            f"{path} holds no results of {what}; name another with --out, or pass --fresh"
        ) from error
    if kept_about == about:
        return results
    if replace:
        return {}
    if images > about["images"]:
        raise ConfigError(
            f"{path} holds results over {images:,} images, more than {about['images']:,}; name"
            " another file with --out, or pass --fresh to give them up"
        )
    if strict and results:
        fields = [name for name in about if kept_about.get(name) != about[name]]
        raise ConfigError(
            f"{path} holds results of another run, which differs in {', '.join(fields)}; name"
            " another file with --out, or pass --fresh to give them up"
        )
    return {}
