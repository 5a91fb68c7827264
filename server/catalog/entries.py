"""The catalog: the models to serve, from a TOML file, from timm names, or the bundled model."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, ValidationError

from server.errors import ConfigError
from server.media.modality import Modality
from tome_core.rules import RuleName

_PACKAGE = Path(str(resources.files("server")))
BUNDLED = _PACKAGE / "bundled" / "models.toml"
# Bundled models that are served by their names only: they need further packages, and each takes its
# share of the start.
BUNDLED_SOUND = _PACKAGE / "bundled" / "sound.toml"
BUNDLED_VIDEO = _PACKAGE / "bundled" / "motion.toml"
# timm's prefix for a folder with config.json and weights.
LOCAL_FOLDER = "local-dir:"
# The fields of an entry that name files.
FILE_FIELDS = ("checkpoint", "labels", "profile")
# Pillow's names of its filters, in lower case.
Interpolation = Literal["bicubic", "bilinear", "nearest", "lanczos", "hamming", "box"]
INTERPOLATIONS: tuple[str, ...] = get_args(Interpolation)

_NAME_CHARACTERS = "A-Za-z0-9._-"
# What requests call the label set of an entry that names one file of them.
DEFAULT_LABEL_SET = "default"
Name = Annotated[str, Field(pattern=rf"^[{_NAME_CHARACTERS}]+$")]


def _as_table(value: Any) -> Any:
    """Return the table of label sets that an entry with one file stands for."""
    if isinstance(value, str | Path):
        return {DEFAULT_LABEL_SET: value}
    if not isinstance(value, dict | None):
        raise ValueError("it must be a file, or a table of several by name")
    return value


LabelFiles = Annotated[dict[Name, Path] | None, BeforeValidator(_as_table)]
_NAME = re.compile(rf"[{_NAME_CHARACTERS}]+")


class ModelSpec(BaseModel):
    """One ``[[models]]`` table.

    Defaults come from timm's ``pretrained_cfg`` of the architecture. Paths are relative to the TOML
    file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name = Field(description="What requests call it.")
    timm: str = Field(
        description="timm architecture, with or without a pretrained tag; or `local-dir:FOLDER`, a"
        " folder of timm or transformers."
    )
    modality: Modality = Field(
        Modality.IMAGE,
        description="What it takes: image, audio or video; the folder of a model decides.",
    )
    checkpoint: Path | None = Field(
        None, description="safetensors or weights-only torch file; default: timm's."
    )
    prefix: str | None = Field(
        None,
        description="Of the model's keys in the file, such as `model.`; default: what is found.",
    )
    labels: Path | None = Field(
        None,
        description="Text file, one label a line; default: those of the folder, or timm's ImageNet"
        " names.",
    )
    text: LabelFiles = Field(
        None,
        description="Label set for zero-shot classification, a file that `tome-serve text` wrote;"
        " or a table of several by name, the default first.",
    )
    profile: Path | None = Field(
        None, description="JSON that `tome-serve evaluate --profile` or `tune` wrote, for /models."
    )
    num_classes: int | None = Field(
        None, ge=0, description="0: no classifier; for embeddings and /visualize only."
    )
    img_size: int | tuple[int, int] | None = None
    in_chans: Literal[1, 3] | None = None
    mean: tuple[FiniteFloat, ...] | None = None
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] | None = None
    interpolation: Interpolation | None = None
    crop_pct: float | None = Field(None, gt=0, le=1)
    crop_mode: Literal["center", "squash", "border"] | None = None
    activation: Literal["softmax", "sigmoid", "none", "cosine"] = Field(
        "softmax",
        description="Of the scores; none: logits; cosine: of image and text. Default for sound:"
        " sigmoid, unless its folder says that a sound has one label; with `text`: as the file"
        " says.",
    )
    subtract_mean: bool | None = Field(
        None,
        description="Of sound: whether the mean of a window's waveform is subtracted; default: as"
        " the authors of the model do.",
    )
    sampling: Literal["stride", "uniform"] | None = Field(
        None,
        description="Of video: a clip takes every `stride`-th frame, or one frame of each of equal"
        " segments of the whole video; default: stride.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Of video: frames from one of a clip to the next; default: 4.",
    )
    clips: int | None = Field(
        None, ge=1, le=16, description="Of video: clips of each video; default: 1."
    )
    crops: Literal[1, 3] | None = Field(
        None, description="Of video: crops of each clip, 1 in the middle or 3; default: 1."
    )
    merging: RuleName = Field(
        "paper",
        description="Which tokens merge: as in the paper, or the most similar pairs of all, by"
        " cosine (pairs) or by distance (nearest).",
    )
    prop_attn: bool = Field(
        True, description="Proportional attention; false for MAE models not trained with merging."
    )
    matryoshka: bool = Field(
        False,
        description="Whether the first numbers of an embedding are one too, as after Matryoshka"
        " training: requests of /v1/embeddings may then give `dimensions`.",
    )
    levels: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="Values of r to check at start and to list; default: `TOME_LEVELS` for images,"
        " shares of its tokens for sound and video.",
    )
    model_args: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the timm architecture."
    )

    @property
    def folder(self) -> Path | None:
        """The folder of a model that `timm` names; None if it names an architecture."""
        if self.timm.startswith(LOCAL_FOLDER):
            return Path(self.timm.removeprefix(LOCAL_FOLDER))
        return None

    @property
    def label_files(self) -> dict[str, Path]:
        """The file of each label set, by its name, the default first; empty without ``text``."""
        return self.text or {}


@dataclass(frozen=True)
class Catalog:
    """The models to serve, and further names for them.

    Attributes:
        specs: one per model, the default one first.
        aliases: by the further name, the name of the model.
    """

    specs: tuple[ModelSpec, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> ModelSpec:
        """Return the entry of that name or alias. Raises `ConfigError`."""
        for spec in self.specs:
            if self.aliases.get(name, name) == spec.name:
                return spec
        names = ", ".join([*(spec.name for spec in self.specs), *self.aliases])
        raise ConfigError(f"there is no model {name!r}; there are {names}")


def read_catalog(
    config: Path | None,
    names: Sequence[str],
    *,
    profiles: bool = True,
) -> tuple[ModelSpec, ...]:
    """Return the entries of a catalog, without its aliases, as `open_catalog` reads them."""
    return open_catalog(config, names, profiles=profiles).specs


def open_catalog(
    config: Path | None,
    names: Sequence[str],
    *,
    profiles: bool = True,
) -> Catalog:
    """Return the models to serve and their aliases: the tables of ``config``, then the ``names``.

    Without either, it is the model of `BUNDLED`.

    Args:
        config: a TOML file.
        names: of bundled models, and of timm's architectures.
        profiles: whether profiles are needed. If not, entries have none, and their files may be
            missing: a profile is named before it is written.

    Raises:
        ConfigError: a file or a field is missing or wrong; the message names it.
    """
    specs: list[ModelSpec] = []
    aliases: Mapping[str, str] = {}
    if config is not None:
        specs, aliases = _read_toml(config, profiles)
    specs += [_from_name(name, profiles) for name in names]
    if not specs:
        specs, aliases = _read_toml(BUNDLED, profiles)
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen:
            raise ConfigError(f"two models are called {spec.name!r}; give one of them another name")
        seen.add(spec.name)
    _check_aliases(aliases, seen, config)
    return Catalog(tuple(specs), aliases)


def _check_aliases(aliases: Mapping[str, str], names: set[str], config: Path | None) -> None:
    """Raise `ConfigError` unless each alias is a new name of one of the models."""
    for alias, name in aliases.items():
        if alias in names:
            raise ConfigError(
                f"{config}, aliases: {alias!r} is a model as well; give the alias another name"
            )
        if name not in names:
            raise ConfigError(
                f"{config}, aliases: {alias!r} is to be {name!r}, which is no model; there are"
                f" {', '.join(sorted(names))}"
            )


def _from_name(name: str, profiles: bool) -> ModelSpec:
    """Return the bundled model of that name, else timm's."""
    for path in (BUNDLED, BUNDLED_SOUND, BUNDLED_VIDEO):
        specs, _ = _read_toml(path, profiles)
        for spec in specs:
            if spec.name == name:
                return spec
    return ModelSpec(name=re.sub(rf"[^{_NAME_CHARACTERS}]", "-", name), timm=name)


def _read_toml(path: Path, profiles: bool) -> tuple[list[ModelSpec], dict[str, str]]:
    """Return the models and the aliases of a file. Raises `ConfigError`."""
    try:
        text = path.read_text("utf-8-sig")  # Windows' editors put a byte order mark in front
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    tables = document.get("models")
    unknown_keys = sorted(set(document) - {"models", "aliases"})
    if unknown_keys or not isinstance(tables, list) or not tables:
        message = (
            f"{path} must hold one or more [[models]] tables, may hold a table [aliases], and"
            " nothing else"
        )
        if unknown_keys:
            message += f"; it also has {', '.join(unknown_keys)}"
        raise ConfigError(message)
    specs = [
        _read_table(path, number, table, profiles) for number, table in enumerate(tables, start=1)
    ]
    return specs, _read_aliases(path, document.get("aliases", {}))


def _read_aliases(path: Path, table: Any) -> dict[str, str]:
    """Return the table ``[aliases]``. Raises `ConfigError` for what is none."""
    if not isinstance(table, dict):
        raise ConfigError(
            f'{path}: aliases must be a table: [aliases], then flowers = "flowers-v2"'
        )
    for alias, name in table.items():
        if not _NAME.fullmatch(alias):
            raise ConfigError(f"{path}, aliases: {alias!r} may only have letters, digits and . _ -")
        if not isinstance(name, str):
            raise ConfigError(f"{path}, aliases: {alias} must be the name of a model, in quotes")
    return table


def _read_table(path: Path, number: int, table: dict[str, Any], profiles: bool) -> ModelSpec:
    try:
        spec = ModelSpec.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ConfigError(f"{path}, model {number}: {field}: {problem['msg']}") from error
    if not profiles:
        spec = spec.model_copy(update={"profile": None})
    return _resolve_paths(path, spec)


def _resolve_paths(path: Path, spec: ModelSpec) -> ModelSpec:
    """Return ``spec`` with its paths relative to the folder of the TOML file at ``path``.

    Raises:
        ConfigError: a file is missing.
    """
    resolved: dict[str, Any] = {}
    for name in FILE_FIELDS:
        relative = getattr(spec, name)
        if relative is None:
            continue
        file = path.parent / relative
        if file.is_dir():
            raise ConfigError(
                f"{path}, model {spec.name}: {name}: {file} is a folder; name a file, or set"
                f' timm = "{LOCAL_FOLDER}{relative}" for a folder of timm or transformers'
            )
        _check_file(path, spec, name, file)
        resolved[name] = file
    if spec.text is not None:
        if not spec.label_files:
            raise ConfigError(f"{path}, model {spec.name}: text: the table names no file")
        files = {name: path.parent / relative for name, relative in spec.label_files.items()}
        for file in files.values():
            _check_file(path, spec, "text", file)
        resolved["text"] = files
    if spec.folder is not None:
        folder = path.parent / spec.folder
        config = folder / "config.json"
        if not config.is_file():
            raise ConfigError(
                f"{path}, model {spec.name}: timm: there is no {config}; the folder must be one"
                " that timm or transformers saved"
            )
        resolved["timm"] = f"{LOCAL_FOLDER}{folder}"
    return spec.model_copy(update=resolved)


def _check_file(path: Path, spec: ModelSpec, field: str, file: Path) -> None:
    if not file.is_file():
        raise ConfigError(f"{path}, model {spec.name}: {field}: there is no file {file}")
