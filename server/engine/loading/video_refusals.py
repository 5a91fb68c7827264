"""Models of video whose attention does not go together with merging, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from server.errors import ConfigError

_IN_TURN = (
    "it attends over time and over space in turn, each token to those at its own place in the other"
    " frames, and a merged token has no one place"
)
_WINDOWS = "it attends within windows of time, rows and columns, and merged tokens fill none"
_PYRAMID = (
    "it is a pyramid: between its stages it pools tokens by their place on a grid, and merged"
    " tokens no longer fill one"
)
_MESSAGES = (
    "it attends within each frame, with one message from every other one, and tokens of several"
    " frames could not merge"
)
_COSINES = (
    "its attention compares queries and keys by cosines under a learned temperature (cos_attn),"
    " which the server does not compute"
)
# By ``model_type`` in the ``config.json`` of transformers.
REFUSED_TYPES = {
    "timesformer": _IN_TURN,
    "xclip": _MESSAGES,
}
# By a part of the names of tensors: what has it, and why it is refused.
_REFUSED_KEYS = (
    (r"\.temporal_(?:attn|fc|norm1)\.", "TimeSformer", _IN_TURN),
    (r"attn\.relative_position_bias_table$", "Video Swin", _WINDOWS),
    (r"attn\.pool_[qkv]\.", "MViT", _PYRAMID),
    (r"^blocks\.\d+\.proj\.weight$", "Hiera", _PYRAMID),
    (r"\.message_(?:fc|attn|ln)\.", "X-CLIP", _MESSAGES),
    (r"\.attn\.scale$", "VideoMAEv2 with cos_attn", _COSINES),
)


def check_attention(path: Path, keys: Iterable[str]) -> None:
    """Raise `ConfigError` if ``keys``, of the tensors in a file, are of a model that is refused."""
    for key in keys:
        for pattern, name, reason in _REFUSED_KEYS:
            if re.search(pattern, key):
                raise ConfigError(
                    f"{path} holds a model of {name} ({key}), which is not supported: {reason}"
                )
