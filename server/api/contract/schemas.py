"""The JSON schemas of the responses, from which ``/openapi.json`` is generated."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Prediction(BaseModel):
    """One class and its score."""

    label: str
    index: int = Field(description="The class number in the model's output.")
    score: float = Field(
        description="Probability from 0 to 1; the logit for a model of activation none."
    )


class Tokens(BaseModel):
    """Tokens at the input of the first block and the output of the last, prefix tokens included."""

    input: int
    output: int


class Timing(BaseModel):
    """Milliseconds of this image's stages; ``forward`` is the time of its whole batch."""

    decode: float
    queue: float
    forward: float


class Answer(BaseModel):
    """The classes of one image."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that the request named.")
    predictions: list[Prediction] = Field(description="Best first.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class Embedding(BaseModel):
    """The pooled features of one image, as from timm's ``forward_head(pre_logits=True)``."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that the request named.")
    embedding: list[float] = Field(description="float32, not normalised.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class Problem(BaseModel):
    """Why a request failed (RFC 9457). Extension members add details, such as `parameter`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Stable; compare errors by this.", examples=["urn:tome:problem:too-large"]
    )
    title: str
    status: int
    detail: str = Field(description="What was wrong with this request, and what is allowed.")
    instance: str | None = Field(
        None, description="A URI of the request; it ends with the X-Request-ID."
    )


class Answers(BaseModel):
    """One result for each file of a multipart body, or each of the JSON's `images`, in order."""

    results: list[Answer | Problem]


class Embeddings(BaseModel):
    """One result for each file of a multipart body, or each of the JSON's `images`, in order."""

    results: list[Embedding | Problem]


class LevelDescription(BaseModel):
    """The cost and the quality of one `r`."""

    r: str
    tokens_out: int
    relative_flops: float = Field(description="FLOPs of a forward pass, relative to r=0.")
    speedup: float | None = Field(description="Relative to r=0, measured on this device at start.")
    accuracy: float | None = Field(description="Percent, from the model's profile.")


class ModelDescription(BaseModel):
    """One served model."""

    name: str
    architecture: str
    input_size: list[int] = Field(description="Channels, height, width.")
    classes: int = Field(
        description="0 for a model without a classifier, which does not serve /classify."
    )
    tokens: int = Field(description="At the input, prefix tokens included.")
    blocks: int
    r_max: int = Field(description="The largest valid `r`.")
    device: str
    dtype: str
    dtype_speedup: float | None = Field(
        description=(
            "Speed in `dtype` relative to the other dtype that the CPU supports, measured at start;"
            " null where there was no choice. Below 1 if the self check rejected the faster one."
        )
    )
    acceleration: str = Field(
        description=(
            "What accelerates the model and passed the self check at start: kernels, operators or"
            " graphs; reference and reference-graphs are the plain network, without and in CUDA"
            " graphs."
        )
    )
    levels: list[LevelDescription]


class Models(BaseModel):
    """All served models; the first is the default."""

    models: list[ModelDescription]


class Health(BaseModel):
    """The state of the server, in one word."""

    status: str
