"""From the key names of published ViT checkpoints to timm's: only what timm's own filters do not know.

timm has DINOv2's names (``register_tokens``, ``mask_token``, ``mlp.w12``), DeiT III's
(``gamma_1``), CLIP's, and those of EVA, BEiT and DINOv3. DeiT and fine-tuned MAE models have timm's
names already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# torchvision's VisionTransformer, and SWAG, from whose code it stems: both number the blocks
# "layer_0", torchvision with a prefix; both name the MLP's layers, torchvision's later versions by
# number.
_TORCHVISION = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^class_token$", "cls_token"),
        (r"^conv_proj\.", "patch_embed.proj."),
        (r"^encoder\.pos_embedding$", "pos_embed"),
        (r"^encoder\.ln\.", "norm."),
        (r"^encoder\.layers\.(?:encoder_)?layer_(\d+)\.", r"blocks.\1."),
        (r"\.ln_([12])\.", r".norm\1."),
        (r"\.self_attention\.in_proj_", ".attn.qkv."),
        (r"\.self_attention\.out_proj\.", ".attn.proj."),
        (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
        (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
        (r"^heads?\.(?:layers\.)?head\.", "head."),
    )
)


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` under the names of timm's VisionTransformer, or unchanged where its family is not known.

    Known are torchvision and SWAG, and the decoder of MAE's pre-training, which is left out.
    """
    if _is_torchvision(state):
        renamed = {name_in_timm(key): value for key, value in state.items()}
        position = renamed.get("pos_embed")
        if (
            position is not None and position.ndim == 3 and position.shape[1] == 1
        ):  # SWAG counts tokens first: (N, 1, D)
            renamed["pos_embed"] = position.transpose(0, 1)
        return renamed
    if "decoder_embed.weight" in state:
        return {
            key: value
            for key, value in state.items()
            if not key.startswith(("decoder_", "mask_token"))
        }
    return dict(state)


def names_in_file(state: Mapping[str, Tensor]) -> dict[str, str]:
    """For each key that `to_timm` renames, by its new name: what ``state`` calls it."""
    return {name_in_timm(key): key for key in state} if _is_torchvision(state) else {}


def name_in_timm(key: str) -> str:
    """The name in timm of one tensor of torchvision's VisionTransformer, or of SWAG's."""
    for pattern, name in _TORCHVISION:
        key = pattern.sub(name, key)
    return key


def _is_torchvision(state: Mapping[str, Tensor]) -> bool:
    return all(
        any(key.startswith(start) for key in state) for start in ("conv_proj.", "encoder.layers.")
    )
