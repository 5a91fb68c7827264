"""Flags of the commands that run a model in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from server.settings import ModelSettings, Settings
from tome_core.rules import RULE_NAMES, RuleName
from tome_core.schedule import Schedule

_QUEUE_LIMIT = Settings.model_fields["queue_limit"]

# What becomes of the windows of a sound or a video.
Windows = Literal["first", "mean", "each"]


def _read_integer(value: str | int) -> str | int:
    return int(value) if str(value).isdecimal() else value


Crops = Annotated[Literal[1, 3] | None, BeforeValidator(_read_integer)]

_TEXT = Field(
    "", description="Of a model with label sets: which to compare with; default: the first."
)
_CLIPS = Field(
    None,
    ge=1,
    description="Of a video: clips that are spread evenly over it; default: the model's.",
)
_CROPS = Field(
    None,
    description=(
        "Of a video: crops of each clip, 1 in the middle or 3 along the longer side; default: the"
        " model's."
    ),
)


class ModelsCommand(ModelSettings):
    """List the models that would be served, with the cost of each level of r."""

    check: str | None = Field(
        None,
        description="Name of a model of timm: say whether merging supports it, and list nothing.",
    )
    queue_limit: int = Field(
        _QUEUE_LIMIT.default,
        ge=1,
        description="Slots of `serve`: their memory is listed too; default on a GPU: 1024.",
    )


class FolderSettings(ModelSettings):
    """How a model runs over all pictures of a folder or a list."""

    r: str = Field("0", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Name of the model; default: the first.")
    batch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Of a folder: pictures in one forward pass; default: 32, on a GPU 128.",
    )
    decode_threads: int = Field(
        0, ge=0, le=256, description="Of a folder: threads that decode; 0: one per core."
    )
    recursive: bool = Field(True, description="Of a folder: take those below it, too; the default.")
    fresh: bool = Field(
        False,
        description="Of a folder: forget what an interrupted command left, and start again.",
    )

    @model_validator(mode="before")
    @classmethod
    def _apply_machine_defaults(cls, data: Any) -> Any:
        """Leave out the defaults of a server, which shares the cores with API processes."""
        return data

    @field_validator("r")
    @classmethod
    def _normalize_schedule(cls, value: str) -> str:
        return str(Schedule.parse(value))


class EmbedCommand(FolderSettings):
    """Write the pooled features of all pictures of a folder or a list to one file.

    After Ctrl-C or a crash the same command goes on.
    """

    folder: Path = Field(description="Folder of pictures, or a text file with one path a line.")
    output: Path | None = Field(
        None,
        validate_default=True,
        description="File to write; its suffix selects the format: .npy, .safetensors or .parquet.",
    )
    normalize: bool = Field(False, description="Divide each vector by its Euclidean norm.")

    @field_validator("output")
    @classmethod
    def _require_output(cls, value: Path | None) -> Path:
        if value is None:
            raise ValueError("name the file to write: -o features.npy, .safetensors or .parquet")
        return value


class ClassifyCommand(FolderSettings):
    """Classify images, sounds or videos here, without a server.

    With -o: all pictures of a folder or a list, into a CSV file; after Ctrl-C or a crash the same
    command goes on.
    """

    files: list[Path] = Field(
        [],
        description=(
            "Image, sound or video files, as the model takes; - is standard input. With -o one"
            " folder of pictures, or a text file with one path a line."
        ),
        validate_default=True,
    )
    output: Path | None = Field(None, description="CSV file to write, of a folder or a list.")
    top_k: int = Field(5, ge=1, description="Number of classes.")
    text: str = _TEXT
    confidence: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] | None = Field(
        None,
        description=(
            "Run an image again at --confidence-r if the probabilities of its two best classes"
            " differ by less than this; auto takes the margin of the model's profile."
        ),
    )
    confidence_r: str | None = Field(
        None, description="Schedule of the second pass of --confidence; default: 0."
    )
    windows: Windows = Field(
        "mean",
        description=(
            "Of a sound that is longer than one window of the model, or of the clips and crops of a"
            " video: classify the first window alone, average all of them, or print each as well."
        ),
    )
    clips: int | None = _CLIPS
    crops: Crops = _CROPS
    json_lines: bool = Field(
        False,
        description="Print one JSON object per file and line.",
    )

    @field_validator("files")
    @classmethod
    def _require_files(cls, value: list[Path]) -> list[Path]:
        if not value:
            raise ValueError("name an image, sound or video file, or - for standard input")
        return value


class VisualizeCommand(ModelSettings):
    """Draw which patches of an image are merged: each region in its mean colour, outlined.

    Of a sound, the patches of the log-mel spectrogram of its first window; of a video, the first
    of its clips.
    """

    file: Path = Field(description="Image, sound or video file.")
    r: str = Field("16", description="Schedule: 16, 16:-1 or 30,0,5,20.")
    model: str = Field("", description="Name of the model; default: the first.")
    output: Path = Field(
        Path("merged.png"),
        description="File to write; its suffix selects the format.",
    )
    clips: int | None = _CLIPS
    crops: Crops = _CROPS


class EvaluateCommand(ModelSettings):
    """Measure accuracy and speed for each r, over labelled files or the Fashion-MNIST files.

    With --task embed: what each r costs embeddings, over pictures without labels.
    """

    data: Path | None = Field(
        None,
        description=(
            "Folder with one sub-folder of images, sounds or videos per class, as the model takes;"
            " or with the Fashion-MNIST test files. With --task embed: of pictures, nested or not."
        ),
    )
    task: Literal["classify", "embed"] = Field(
        "classify",
        description=(
            "What is measured beside speed: the accuracy, or how close embeddings and their nearest"
            " neighbours are to those of r=0."
        ),
    )
    r: str = Field(
        "",
        description=(
            "Schedules, separated by spaces; default: 0 to 25 for images, the model's levels for"
            " sounds and videos, and with --task embed."
        ),
    )
    merging: str = Field(
        "",
        description=(
            f"Rules by which tokens merge, of {', '.join(RULE_NAMES)}, separated by spaces;"
            " default: that of the model's entry."
        ),
    )
    model: str = Field("", description="Name of the model; default: the first.")
    text: str = _TEXT
    batch: int = Field(50, ge=1, le=1024, description="Images or windows in one forward pass.")
    limit: int | None = Field(None, ge=1, description="Largest number of files to evaluate.")
    clips: int | None = _CLIPS
    crops: Crops = _CROPS
    profile: Path | None = Field(
        None,
        description=(
            "Write the table to this JSON file, for a model's `profile`. With --task embed it is"
            " added to what the file has of the same weights."
        ),
    )
    plot: Path | None = Field(
        None,
        description=(
            "Plot accuracy, or with --task embed the cosine, against measured speed-up to this PNG,"
            " SVG or PDF file."
        ),
    )
    beside: Path | None = Field(
        None,
        description="Profile of another model, to be drawn in the same plot.",
    )

    @field_validator("r")
    @classmethod
    def _normalize_schedules(cls, value: str) -> str:
        return _normalize_schedules(value)

    @field_validator("merging")
    @classmethod
    def _check_rules(cls, value: str) -> str:
        for name in value.split():
            if name not in RULE_NAMES:
                raise ValueError(f"{name!r} is not a rule; there are {', '.join(RULE_NAMES)}")
        return value

    @property
    def rules(self) -> tuple[RuleName, ...]:
        """The rules of ``merging``, each once."""
        return tuple(rule for rule in RULE_NAMES if rule in self.merging.split())


class TuneCommand(ModelSettings):
    """Measure on pictures without labels what each r and each rule of merging changes and gains.

    Prints a table, and the lines for the model's entry; writes its profile. After Ctrl-C the same
    command goes on.
    """

    model: str = Field(description="Name of the model.")
    text: str = _TEXT
    folder: Path = Field(
        description="Folder of pictures, nested or not; or with the Fashion-MNIST test files."
    )
    r: str = Field("", description="Schedules, separated by spaces; default: the model's levels.")
    batch: int = Field(50, ge=1, le=1024, description="Pictures in one forward pass.")
    limit: int | None = Field(
        None, ge=1, description="Largest number of pictures, taken at equal distances."
    )
    profile: Path | None = Field(
        None, description="JSON file to write; default: MODEL.profile.json in this folder."
    )
    plot: Path | None = Field(
        None,
        description="Plot agreement or cosine against speed-up to this PNG, SVG or PDF file.",
    )
    fresh: bool = Field(
        False, description="Forget what an interrupted measurement left, and start again."
    )

    @field_validator("r")
    @classmethod
    def _normalize_schedules(cls, value: str) -> str:
        return _normalize_schedules(value)


def _normalize_schedules(value: str) -> str:
    schedules = [Schedule.parse(text) for text in value.split()]
    return " ".join(str(schedule) for schedule in schedules)
