"""Key names of the authors' AST and SSAST files, in the names of `SpectrogramViT`.

The transformer is a distilled ViT of timm called ``v``, whose own heads are not used; the
classifier is ``mlp_head``, a norm and a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_PATCH_EMBEDDING = "v.patch_embed.proj.weight"
_LEFT_OUT = re.compile(r"v\.head(?:_dist)?\.")
_NAMES = (
    (r"^mlp_head\.0\.", "fc_norm."),
    (r"^mlp_head\.1\.", "head."),
    (r"^v\.dist_token$", "reg_token"),
    (r"^v\.", ""),
)
_PATTERNS = tuple((re.compile(pattern), replacement) for pattern, replacement in _NAMES)


def is_spectrogram_model(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of AST's authors."""
    return _PATCH_EMBEDDING in state_dict


def spectrogram_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` with the names of `SpectrogramViT`."""
    return {
        name_in_timm(key): value for key, value in state_dict.items() if not _LEFT_OUT.match(key)
    }


def name_in_timm(key: str) -> str:
    """Return the name in `SpectrogramViT` of a key."""
    for pattern, replacement in _PATTERNS:
        key = pattern.sub(replacement, key)
    return key
