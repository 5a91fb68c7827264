"""Which models to serve: entries of a TOML file, timm names, or the bundled model where nothing is named."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.errors import ConfigError

BUNDLED = Path(str(resources.files("server"))) / "bundled" / "models.toml"
LOCAL_FOLDER = "local-dir:"  # timm's prefix for a folder with config.json and weights


class ModelSpec(BaseModel):
    """One ``[[models]]`` table. What is missing comes from timm's ``pretrained_cfg`` of the architecture.

    Relative paths are relative to the TOML file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$", description="What requests call it.")
    timm: str = Field(
        description="timm architecture, with or without a pretrained tag; or `local-dir:FOLDER`."
    )
    checkpoint: Path | None = Field(
        None, description="safetensors or weights-only torch file; default: timm's."
    )
    labels: Path | None = Field(
        None, description="Text file, one label a line; default: timm's ImageNet names."
    )
    profile: Path | None = Field(
        None, description="JSON that `tome-serve evaluate --profile` wrote, for /models."
    )
    num_classes: int | None = Field(
        None, ge=0, description="0: no classifier; for /embed and /visualize only."
    )
    img_size: int | tuple[int, int] | None = None
    in_chans: Literal[1, 3] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = Field(None, pattern=r"^(bicubic|bilinear|nearest)$")
    crop_pct: float | None = Field(None, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] | None = None
    activation: Literal["softmax", "sigmoid", "none"] = Field(
        "softmax", description="Of the scores; none: logits."
    )
    prop_attn: bool = Field(
        True, description="Proportional attention; false for MAE models not trained with merging."
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the timm architecture."
    )


def read_catalog(config: Path | None, names: Sequence[str]) -> tuple[ModelSpec, ...]:
    """The models to serve, in order: the tables of ``config``, then timm ``names``; without either the bundled one.

    Raises:
        ConfigError: a file or field is missing or wrong; the message names it.
    """
    specs = list(_read_toml(config)) if config is not None else []
    specs += [ModelSpec(name=re.sub(r"[^A-Za-z0-9._-]", "-", name), timm=name) for name in names]
    if not specs:
        specs = list(_read_toml(BUNDLED))
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise ConfigError(f"two models are called {spec.name!r}; give one of them another name")
        seen.add(spec.name)
    return tuple(specs)


def _read_toml(path: Path) -> list[ModelSpec]:
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    tables = document.get("models")
    unknown = sorted(set(document) - {"models"})
    if unknown or not isinstance(tables, list) or not tables:
        found = f"; it also has {', '.join(unknown)}" if unknown else ""
        raise ConfigError(f"{path} must hold one or more [[models]] tables and nothing else{found}")
    return [_read_table(path, number, table) for number, table in enumerate(tables, 1)]


def _read_table(path: Path, number: int, table: dict[str, Any]) -> ModelSpec:
    try:
        spec = ModelSpec.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{path}, model {number}: {field}: {problem['msg']}") from error
    files: dict[str, Any] = {
        name: path.parent / value
        for name in ("checkpoint", "labels", "profile")
        if (value := getattr(spec, name)) is not None
    }
    for name, file in files.items():
        if not file.is_file():
            raise ConfigError(f"{path}, model {spec.name}: {name}: there is no file {file}")
    if spec.timm.startswith(LOCAL_FOLDER):
        folder = path.parent / spec.timm.removeprefix(LOCAL_FOLDER)
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{path}, model {spec.name}: timm: there is no {folder / 'config.json'}"
            )
        files["timm"] = f"{LOCAL_FOLDER}{folder}"
    return spec.model_copy(update=files)
