"""The JSON schemas of the paths below ``/v1``: OpenAI's, and what this server adds."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.api.contract.schemas import SoundMedia, Timing, Tokens, VideoMedia
from tome_core.rules import RuleName


class EmbeddingDetails(BaseModel):
    """How one embedding was computed, as the other members of the answer of `/embed`."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that the request named.")
    merging: RuleName = Field(description="The rule by which tokens merge, as in `/models`.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")
    modality: Literal["audio", "video"] | None = Field(None, description="Not of an image.")
    media: SoundMedia | VideoMedia | None = Field(None, description="Not of an image.")


class EmbeddingItem(BaseModel):
    """The embedding of one input."""

    object: Literal["embedding"]
    index: int = Field(description="Of its input, from 0.")
    embedding: list[float] | str = Field(
        description="Numbers; or with `encoding_format=base64` little-endian float32 in base64."
    )
    tome: EmbeddingDetails


class Usage(BaseModel):
    """The tokens of all inputs before merging, prefix tokens included: twice the same number."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The embeddings of all inputs, in their order."""

    object: Literal["list"]
    model: str
    data: list[EmbeddingItem]
    usage: Usage


class OpenAIModel(BaseModel):
    """One served model."""

    id: str = Field(description="Its name.")
    object: Literal["model"]
    created: int = Field(description="Always 0: the server does not know when it was made.")
    owned_by: str


class OpenAIModelList(BaseModel):
    """All served models; the first is the default."""

    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAIErrorDetails(BaseModel):
    """Why a request failed."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None = Field(description="The member or parameter that is wrong.")
    code: str = Field(description="Stable; compare errors by this.")


class OpenAIError(BaseModel):
    """The form of errors below `/v1`."""

    error: OpenAIErrorDetails
