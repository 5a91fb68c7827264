"""What the answers look like in JSON; the source of ``/openapi.json``."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """One class, and how likely the model finds it."""

    label: str
    index: int = Field(description="The class number in the model's output.")
    score: float = Field(
        description="Probability from 0 to 1; the logit for a model of activation none."
    )


class Tokens(BaseModel):
    """How many tokens went into the first block and came out of the last, prefix tokens included."""

    input: int
    output: int


class Timing(BaseModel):
    """Milliseconds of this image's stages; ``forward`` is that of the whole batch it was in."""

    decode: float
    queue: float
    forward: float


class Answer(BaseModel):
    """What the model sees in one image."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that was asked for.")
    predictions: list[Prediction] = Field(description="Best first.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class Embedding(BaseModel):
    """The pooled features of one image, as timm's ``forward_head(pre_logits=True)`` gives them."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that was asked for.")
    embedding: list[float] = Field(description="Of float32, not normalised.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class Problem(BaseModel):
    """Why there is no answer (RFC 9457). Further members may say more, such as `parameter`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Stable; programs compare this.", examples=["urn:tome:problem:too-large"]
    )
    title: str
    status: int
    detail: str = Field(description="What was wrong with this request, and what is allowed.")
    instance: str | None = Field(
        None, description="Names the request; its end is the X-Request-ID."
    )


class Answers(BaseModel):
    """One result for each file of a multipart body, in order."""

    results: list[Answer | Problem]


class Embeddings(BaseModel):
    """One result for each file of a multipart body, in order."""

    results: list[Embedding | Problem]


class LevelDescription(BaseModel):
    """What one `r` costs and gives."""

    r: str
    tokens_out: int
    relative_flops: float = Field(
        description="FLOPs of a forward pass, as a share of those at r=0."
    )
    speedup: float | None = Field(description="Against r=0, measured on this device at start.")
    accuracy: float | None = Field(description="Percent, from the model's profile.")


class ModelDescription(BaseModel):
    """One model that is served."""

    name: str
    architecture: str
    input_size: list[int] = Field(description="Channels, height, width.")
    classes: int = Field(
        description="0 for a model without a classifier, which serves no /classify."
    )
    tokens: int = Field(description="At the input, prefix tokens included.")
    blocks: int
    r_max: int = Field(description="The largest valid `r`.")
    device: str
    dtype: str
    acceleration: str = Field(
        description=(
            "What makes it fast, and proved right at start: kernels, operators, graphs; reference"
            " and reference-graphs for the plain network, without and in CUDA graphs."
        )
    )
    levels: list[LevelDescription]


class Models(BaseModel):
    """All models that are served; the first is the default."""

    models: list[ModelDescription]


class Health(BaseModel):
    """The state of the server in one word."""

    status: str
