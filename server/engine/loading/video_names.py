"""Key names of the files of VideoMAE's and MAE-ST's authors, in the names of `VideoViT`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import torch
from torch import Tensor

from server.engine.loading.key_names import without_mae_decoder
from server.engine.loading.transformers_names import fill_key_biases, join_attention

StateDict = dict[str, Tensor]

_SPATIAL = "pos_embed_spatial"  # (1, rows * columns, D)
_TEMPORAL = "pos_embed_temporal"  # (1, times, D)
_CLASS = "pos_embed_class"  # (1, 1, D)


class Source(Enum):
    """Whose names a file has."""

    TIMM = "timm"
    VIDEOMAE = "VideoMAE"
    MAE_ST = "MAE-ST"


def find_source(state_dict: Mapping[str, Tensor]) -> Source:
    """Return whose names the keys are."""
    if "blocks.0.attn.q.weight" in state_dict or _SPATIAL in state_dict:
        return Source.MAE_ST
    if "pos_embed" not in state_dict or "blocks.0.attn.q_bias" in state_dict:
        return Source.VIDEOMAE
    return Source.TIMM


def video_to_timm(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return ``state_dict`` with the names of `VideoViT`, without the decoder of pre-training.

    Positions that MAE-ST has by time and by place are added up. Those that VideoMAE computes are
    not in its files, nor in the result.
    """
    tensors = without_mae_decoder(state_dict)
    join_attention(tensors)
    fill_key_biases(tensors)
    if find_source(state_dict) is Source.MAE_ST:
        _add_positions(tensors)
        for kind in ("weight", "bias"):  # it comes after the mean of the patches
            if f"norm.{kind}" in tensors:
                tensors[f"fc_norm.{kind}"] = tensors.pop(f"norm.{kind}")
    return tensors


def names_in_file(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in ``state_dict`` of the keys that `video_to_timm` renames."""
    names = {}
    for key in state_dict:
        if key.endswith(".q_bias"):
            names[f"{key.removesuffix('q_bias')}qkv.bias"] = key
        names[key.replace(".attn.q.", ".attn.qkv.")] = key
    if _SPATIAL in state_dict:
        names["pos_embed"] = _SPATIAL
    if find_source(state_dict) is Source.MAE_ST:
        names |= {f"fc_norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
    return names


def _add_positions(tensors: StateDict) -> None:
    """Replace the positions of times, places and the class token by those of all tokens."""
    if _SPATIAL not in tensors or _TEMPORAL not in tensors:
        return
    of_places = tensors.pop(_SPATIAL)
    of_times = tensors.pop(_TEMPORAL)
    patches = (of_times[:, :, None] + of_places[:, None]).flatten(1, 2)
    prefix = tensors.pop(_CLASS, patches[:, :0])
    tensors["pos_embed"] = torch.cat([prefix, patches], dim=1)
