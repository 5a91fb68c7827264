"""The flags of ``tome-serve text``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class TextCommand(BaseSettings):
    """Write the vectors of labels, by the text tower of a CLIP or SigLIP.

    The file is the `text` of a model's entry, for zero-shot classification.
    """

    model_config = SettingsConfigDict(
        env_prefix="TOME_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    model: str = Field(
        description="Folder of transformers or open_clip, or the name of one on the hub."
    )
    labels: Path = Field(description="Text file, one label a line.")
    templates: Path | None = Field(
        None,
        description="Text file, one template a line, with {} in the place of the label; default:"
        " the label alone.",
    )
    output: Path | None = Field(
        None, validate_default=True, description="File to write: labels.safetensors."
    )
    library: Literal["auto", "transformers", "open_clip"] = Field(
        "auto",
        description="Whose text tower; auto: as the files of a folder say, of a name transformers.",
    )
    batch: int = Field(256, ge=1, le=65536, description="Texts in one forward pass.")
    device: str = Field(
        "auto",
        description="Device such as cpu, cuda or cuda:0; auto selects a GPU if there is one.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info",
        description="Lowest severity that is logged.",
    )

    @field_validator("output")
    @classmethod
    def _require_output(cls, value: Path | None) -> Path:
        if value is None or value.suffix != ".safetensors":
            raise ValueError("name the file to write: -o labels.safetensors")
        return value
