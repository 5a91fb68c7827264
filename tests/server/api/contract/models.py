"""Served models for tests of parameters: no engine, only what the API process knows of them."""

from __future__ import annotations

from server.ipc.messages import Level, ModelInfo
from server.media.transforms import ImageTransform


def level(
    r: int,
    speedup: float | None = None,
    accuracy: float | None = None,
    agreement: float | None = None,
    agreement_low: float | None = None,
    **others: float,
) -> Level:
    """A level with token count and FLOPs that fall with ``r``."""
    return Level(
        r=str(r),
        tokens_out=197 - 12 * r,
        relative_flops=1 - r / 30,
        speedup=speedup,
        accuracy=accuracy,
        agreement=agreement,
        agreement_low=agreement_low,
        **others,
    )


def model(
    name: str = "small",
    tokens: int = 197,
    depth: int = 12,
    classes: int = 10,
    levels: tuple[Level, ...] = (),
) -> ModelInfo:
    return ModelInfo(
        name=name,
        architecture="vit",
        transform=ImageTransform((3, 224, 224), "bicubic", 0.9, "center"),
        labels=tuple(f"class {index}" for index in range(classes)),
        tokens=tokens,
        prefix=1,
        depth=depth,
        device="cpu",
        dtype="float32",
        levels=levels,
        grid=(14, 14),
    )


# r=12 is not in the profile, and agreement and cosine of r=8 have no interval.
LEVELS = (
    level(0, accuracy=90.88, agreement=100, agreement_low=100, cosine=1, cosine_low=1),
    level(4, accuracy=90.93, agreement=99.5, agreement_low=99, cosine=0.997, cosine_low=0.995),
    level(8, accuracy=90.88, agreement=98, cosine=0.99),
    level(12),
    level(16, accuracy=90.77, agreement=97, agreement_low=96, cosine=0.97, cosine_low=0.96),
)
UNMEASURED = tuple(Level(each.r, each.tokens_out, each.relative_flops) for each in LEVELS)

MODELS = {
    "small": model(levels=LEVELS),
    "tiny": model("tiny", tokens=17, depth=4, classes=3),
    "bare": model("bare", classes=0),
    "unknown": model("unknown", levels=UNMEASURED),
}
