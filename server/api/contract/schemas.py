"""The JSON schemas of the responses, from which ``/openapi.json`` is generated."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tome_core.rules import RuleName


class Prediction(BaseModel):
    """One class and its score."""

    label: str
    index: int = Field(description="The class number in the model's output.")
    score: float = Field(
        description="Probability from 0 to 1; the logit for a model of activation none, the cosine"
        " of image and text for one of activation cosine."
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
    merging: RuleName = Field(description="The rule by which tokens merge, as in `/models`.")
    predictions: list[Prediction] = Field(description="Best first.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class Pass(BaseModel):
    """One forward pass of an image."""

    r: str = Field(description="The schedule that was used.")
    forward_ms: float = Field(description="The time of its whole batch.")


class CascadeAnswer(Answer):
    """The classes of one image that was to run again if they were uncertain: `confidence`.

    `r`, `tokens` and `batch_size` are those of the last pass; `queue` and `forward` are sums over
    the passes.
    """

    passes: list[Pass] = Field(description="One, or two.")
    confident: bool = Field(
        description=(
            "Whether the classes are certain, or those of a second pass; false where the second"
            " pass would have missed the deadline, or failed."
        )
    )


class Embedding(BaseModel):
    """The pooled features of one image, as from timm's ``forward_head(pre_logits=True)``."""

    model: str
    r: str = Field(description="The schedule that was used.")
    r_requested: str = Field(description="The schedule that the request named.")
    merging: RuleName = Field(description="The rule by which tokens merge, as in `/models`.")
    embedding: list[float] = Field(description="float32; of length 1 with `normalize=true`.")
    tokens: Tokens
    timing_ms: Timing
    batch_size: int = Field(description="How many images shared the forward pass.")


class SoundMedia(BaseModel):
    """What a sound is, as it was decoded."""

    seconds: float = Field(description="Of the whole sound.")
    sample_rate: int = Field(description="Of the file, in Hz.")
    channels: int = Field(description="Of the file.")


class VideoMedia(BaseModel):
    """What a video is."""

    seconds: float = Field(description="Of the whole video.")
    frames: int = Field(description="Of the whole video, whether they were decoded or not.")
    frame_rate: float = Field(description="Frames a second, on average.")
    width: int = Field(description="As it is shown, in pixels.")
    height: int = Field(description="As it is shown, in pixels.")
    codec: str = Field(description="Such as h264.")


_CROP = "Of three: 0 is the left or the upper one. A single one, from the middle, is 0."


class WindowAnswer(BaseModel):
    """The classes of one window of a sound."""

    start: float = Field(description="In seconds.")
    end: float = Field(description="In seconds; at most the end of the file.")
    r: str = Field(description="The schedule that was used.")
    predictions: list[Prediction] = Field(description="Best first.")
    tokens: Tokens


class WindowEmbedding(BaseModel):
    """The pooled features of one window of a sound."""

    start: float = Field(description="In seconds.")
    end: float = Field(description="In seconds; at most the end of the file.")
    r: str = Field(description="The schedule that was used.")
    embedding: list[float] = Field(description="float32; of length 1 with `normalize=true`.")
    tokens: Tokens


class VideoWindowAnswer(WindowAnswer):
    """The classes of one window of a video: one crop of one clip."""

    crop: int = Field(description=_CROP)


class VideoWindowEmbedding(WindowEmbedding):
    """The pooled features of one window of a video: one crop of one clip."""

    crop: int = Field(description=_CROP)


class MediaAnswer(Answer):
    """What the answers for sounds and for videos share."""

    modality: Literal["audio", "video"]
    media: SoundMedia | VideoMedia


class MediaEmbedding(Embedding):
    """What the features of sounds and of videos share."""

    modality: Literal["audio", "video"]
    media: SoundMedia | VideoMedia


class SoundAnswer(MediaAnswer):
    """The classes of one sound: its scores are means over its windows.

    `r` and `tokens` are those of the window that merged most. `queue` is the longest wait of a
    window, `forward` the time of all its batches, `batch_size` that of the largest.
    """

    modality: Literal["audio"]
    media: SoundMedia


class SoundAnswerByWindow(SoundAnswer):
    """The classes of one sound, and of each window of it: `windows=each`."""

    windows: list[WindowAnswer] = Field(description="In order of time.")


class SoundEmbedding(MediaEmbedding):
    """The pooled features of one sound: the mean over its windows. Else as `SoundAnswer`."""

    modality: Literal["audio"]
    media: SoundMedia


class SoundEmbeddingByWindow(SoundEmbedding):
    """The pooled features of one sound, and of each window of it: `windows=each`."""

    windows: list[WindowEmbedding] = Field(description="In order of time.")


class VideoAnswer(MediaAnswer):
    """The classes of one video: its scores are means over its windows. Else as `SoundAnswer`."""

    modality: Literal["video"]
    media: VideoMedia


class VideoAnswerByWindow(VideoAnswer):
    """The classes of one video, and of each window of it: `windows=each`."""

    windows: list[VideoWindowAnswer] = Field(description="In order of time, then of crops.")


class VideoEmbedding(MediaEmbedding):
    """The pooled features of one video: the mean over its windows. Else as `SoundAnswer`."""

    modality: Literal["video"]
    media: VideoMedia


class VideoEmbeddingByWindow(VideoEmbedding):
    """The pooled features of one video, and of each window of it: `windows=each`."""

    windows: list[VideoWindowEmbedding] = Field(description="In order of time, then of crops.")


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

    # The types with more fields first: an item is written as the first type that it is one of.
    results: list[
        SoundAnswerByWindow
        | VideoAnswerByWindow
        | SoundAnswer
        | VideoAnswer
        | CascadeAnswer
        | Answer
        | Problem
    ]


class Embeddings(BaseModel):
    """One result for each file of a multipart body, or each of the JSON's `images`, in order."""

    results: list[
        SoundEmbeddingByWindow
        | VideoEmbeddingByWindow
        | SoundEmbedding
        | VideoEmbedding
        | Embedding
        | Problem
    ]


class LevelDescription(BaseModel):
    """The cost and the quality of one `r`."""

    r: str
    tokens_out: int
    relative_flops: float = Field(description="FLOPs of a forward pass, relative to r=0.")
    speedup: float | None = Field(
        description="Relative to r=0, by the batches that were timed on this device at start."
    )
    accuracy: float | None = Field(description="Percent, from the model's profile.")
    agreement: float | None = Field(
        description="Percent of images with the class of r=0, from the model's profile."
    )
    agreement_low: float | None = Field(
        description="What `agreement` is at least, by its 95% confidence interval."
    )
    margin: float | None = Field(
        description="What `confidence=auto` means at this `r`, from the model's profile."
    )
    margin_agreement: float | None = Field(
        description="What `agreement` is at least with `confidence=auto`, from the profile."
    )
    cascade_accuracy: float | None = Field(
        description="The accuracy with `confidence=auto`, from the profile."
    )
    cosine: float | None = Field(
        description="Mean cosine of embeddings with those of `r=0`, from the model's profile."
    )
    cosine_low: float | None = Field(
        description="What `cosine` is at least, by its 95% confidence interval."
    )
    cosine_p1: float | None = Field(description="Below it is the cosine of 1% of images.")
    cosine_p5: float | None = Field(description="Below it is the cosine of 5% of images.")
    recall_1: float | None = Field(
        description="Percent of images that keep their nearest neighbour of `r=0`."
    )
    recall_10: float | None = Field(
        description="Percent of the 10 nearest neighbours of `r=0` that stay among the 10 nearest."
    )
    mixed_recall_1: float | None = Field(
        description="`recall_1` where half of the embeddings in the index are of `r=0`."
    )
    mixed_recall_10: float | None = Field(
        description="`recall_10` where half of the embeddings in the index are of `r=0`."
    )


class LabelSetDescription(BaseModel):
    """Labels that images can be compared with: zero-shot classification."""

    name: str = Field(description="For the parameter `text`.")
    labels: int = Field(description="How many there are.")


class ModelDescription(BaseModel):
    """One served model."""

    name: str
    aliases: list[str] = Field(default_factory=list, description="Its further names.")
    architecture: str
    modality: Literal["image", "audio", "video"] = Field(description="What it takes.")
    input_size: list[int] = Field(
        description="Channels, height, width. The frames of a clip lie below each other."
    )
    classes: int = Field(
        description="0 for a model without a classifier, which does not serve /classify; with label"
        " sets, the labels of the default."
    )
    tokens: int = Field(description="At the input, prefix tokens included.")
    blocks: int
    merging: RuleName = Field(
        description="The rule by which tokens merge: as in the paper, or the most similar pairs, by"
        " cosine (pairs) or by distance (nearest)."
    )
    activation: str = Field(
        description="softmax, sigmoid, none or cosine: computes the scores. `confidence` needs"
        " softmax."
    )
    label_sets: list[LabelSetDescription] = Field(
        description="Of a model of zero-shot classification, the default first; empty for others."
    )
    embedding_dim: int = Field(description="How many numbers an embedding has.")
    matryoshka: bool = Field(
        description="Whether `dimensions` of /v1/embeddings may be smaller than `embedding_dim`."
    )
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


class SoundModelDescription(ModelDescription):
    """One served model of sound, and the limits on a sound."""

    window_seconds: float = Field(description="Of one window, which is one input of the model.")
    max_seconds: float = Field(description="Of a sound, also by its windows.")
    max_channels: int
    max_windows: int


class VideoModelDescription(ModelDescription):
    """One served model of video, and the limits on a video."""

    frames: int = Field(description="Of one clip. A crop of a clip is one input of the model.")
    sampling: Literal["stride", "uniform"] = Field(
        description="A clip takes every `stride`-th frame, or one of each of equal segments."
    )
    stride: int = Field(description="Frames from one of a clip to the next.")
    clips: int = Field(description="Of each video, unless the request names another number.")
    crops: int = Field(description="Of each clip, unless the request names another number.")
    max_seconds: float = Field(description="Of a video.")
    max_frames: int = Field(description="That are decoded of a video.")
    max_pixels: int = Field(description="Of a frame.")
    max_windows: int = Field(description="Clips times crops.")


class Models(BaseModel):
    """All served models; the first is the default."""

    models: list[SoundModelDescription | VideoModelDescription | ModelDescription]


class Health(BaseModel):
    """The state of the server, in one word."""

    status: str
