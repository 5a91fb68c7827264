"""Key names of published ViT checkpoints that timm's own filters do not translate.

timm translates the names of DINOv2 (``register_tokens``, ``mask_token``, ``mlp.w12``), DeiT III
(``gamma_1``), CLIP, EVA, BEiT and DINOv3. DeiT and fine-tuned MAE models use timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from server.engine.loading import spectrogram_names, transformers_names
from server.engine.loading.spectrogram_names import is_spectrogram_model, spectrogram_to_timm
from server.engine.loading.transformers_names import is_transformers, transformers_to_timm

# Names of torchvision's VisionTransformer, and of SWAG, from which torchvision's code derives. Both
# number the blocks "layer_0", torchvision with a prefix. Both name the layers of the MLP, and later
# versions of torchvision number them.
_TORCHVISION_NAMES = (
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
_TORCHVISION_PATTERNS = tuple(
    (re.compile(pattern), replacement) for pattern, replacement in _TORCHVISION_NAMES
)

# Keys of the decoder with which MAE is pre-trained.
_MAE_DECODER = ("decoder_", "mask_token")


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` with the names of timm's VisionTransformer.

    Names of torchvision, SWAG, AST and transformers are translated. The decoder of MAE's
    pre-training is left out. Other state dicts are returned unchanged.
    """
    if _is_torchvision(state_dict):
        return _torchvision_to_timm(state_dict)
    if is_spectrogram_model(state_dict):
        return spectrogram_to_timm(state_dict)
    if is_transformers(state_dict):
        return transformers_to_timm(state_dict)
    return without_mae_decoder(state_dict)


def without_mae_decoder(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state_dict`` without the decoder of MAE's pre-training."""
    if "decoder_embed.weight" not in state_dict:
        return dict(state_dict)
    return {key: value for key, value in state_dict.items() if not key.startswith(_MAE_DECODER)}


def _torchvision_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {name_in_timm(key): value for key, value in state_dict.items()}
    position = renamed.get("pos_embed")
    # SWAG's position embedding is (N, 1, D), timm's is (1, N, D).
    if position is not None and position.ndim == 3 and position.shape[1] == 1:
        renamed["pos_embed"] = position.transpose(0, 1)
    return renamed


def names_in_file(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in ``state_dict`` of each key that `to_timm` renames, by its name in timm."""
    if is_transformers(state_dict):
        return transformers_names.names_in_file(state_dict)
    if is_spectrogram_model(state_dict):
        return {spectrogram_names.name_in_timm(key): key for key in state_dict}
    if not _is_torchvision(state_dict):
        return {}
    return {name_in_timm(key): key for key in state_dict}


def name_in_timm(key: str) -> str:
    """Return timm's name of a key of torchvision's VisionTransformer, or of SWAG's."""
    for pattern, replacement in _TORCHVISION_PATTERNS:
        key = pattern.sub(replacement, key)
    return key


def _is_torchvision(state_dict: Mapping[str, Tensor]) -> bool:
    has_embedding = any(key.startswith("conv_proj.") for key in state_dict)
    has_blocks = any(key.startswith("encoder.layers.") for key in state_dict)
    return has_embedding and has_blocks
