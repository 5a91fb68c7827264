"""The input of models of video: what the entry, the model's folder or the authors say it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from server.catalog.entries import ModelSpec
from server.media.transforms import VideoTransform


@dataclass(frozen=True)
class ClipFormat:
    """How a model takes its clips, where an entry does not say; see `VideoTransform`."""

    sampling: Literal["stride", "uniform"] = "stride"
    stride: int = 4


def make_video_transform(spec: ModelSpec, vit: Any, data: dict[str, Any]) -> VideoTransform:
    """Return the transform of a model of video.

    Its ``pretrained_cfg`` may have a `ClipFormat` under ``clips``; the fields of the entry have
    precedence.

    Args:
        spec: the entry.
        vit: the model, whose ``patch_embed`` has ``frames``, ``tubelet`` and ``img_size (T*H, W)``.
        data: of `resolve_data_config`.
    """
    embedding = vit.patch_embed
    tall, width = embedding.img_size
    height = tall // embedding.frames
    clips: ClipFormat = vit.pretrained_cfg.get("clips", ClipFormat())
    return VideoTransform(
        frames=embedding.frames,
        tubelet=embedding.tubelet,
        height=height,
        width=width,
        resize=math.floor(min(height, width) / data["crop_pct"]),
        interpolation=data["interpolation"],
        sampling=spec.sampling or clips.sampling,
        stride=spec.stride or clips.stride,
        clips=spec.clips or 1,
        crops=spec.crops or 1,
        channels=vit.in_chans,
    )
