"""Key names of Hugging Face transformers' vision models, in timm's names.

Two generations of names are read: those of files (``encoder.layer.0.attention.attention.query``),
which transformers writes to this day, and those of modules since version 5
(``layers.0.attention.q_proj``), which ``model.state_dict()`` has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from server.errors import ConfigError

StateDict = dict[str, Tensor]

_PATCH_EMBEDDING = re.compile(
    r"(?:[a-z0-9_]+\.)?embeddings\.patch_embeddings?(?:\.projection)?\.weight"
    r"|(?:vjepa2\.)?encoder\.embeddings\.patch_embeddings\.proj\.weight"
)
# Of CLIP: from its pooled features to the space that it shares with texts.
PROJECTION = "visual_projection.weight"
# Parts that take no part in what the server computes: the text models and projections of CLIP and
# SigLIP (but see `PROJECTION`), the tokens of masked pre-training, the tanh layer of ViTModel's
# pooler_output, buffers, and the predictor with which V-JEPA 2 is pre-trained.
_LEFT_OUT = re.compile(
    r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$"
    r"|(?:.*\.)?(?:mask_token|position_ids|relative_position_index)$"
    r"|(?:.*\.)?pooler\.dense\."
    r"|(?:vjepa2\.)?predictor\.(?:embeddings|layer|layernorm|proj)\."
)
_BLOCK = r"^((?:attn_pool\.)?blocks\.\d+)"  # V-JEPA 2's pooler has blocks, too
_NAMES = (
    (
        r"^(?:vit|deit|beit|dinov2|dinov2_with_registers|vision_model"
        r"|audio_spectrogram_transformer|videomae|vivit|vjepa2)\.",
        "",
    ),
    (r"^encoder\.(embeddings|layernorm)\.", r"\1."),
    (r"^embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.|proj\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^pooler\.self_attention_layers\.", "attn_pool.blocks."),
    (r"^(blocks\.\d+)\.attention\.attention\.([qv])_bias$", r"\1.attn.\2_bias"),
    (r"^(?:encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (_BLOCK + r"\.(?:layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (_BLOCK + r"\.(?:layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (
        _BLOCK + r"\.(?:attention|self_attn)\.(?:o_proj|out_proj|proj|output\.dense)\.",
        r"\1.attn.proj.",
    ),
    (r"^(blocks\.\d+)\.(?:attention\.attention\.)?relative_position_bias\.", r"\1.attn."),
    (
        _BLOCK + r"\.(?:attention\.attention|attention|self_attn)\.(q|k|v)(?:uery|ey|alue|_proj)\.",
        r"\1.attn.\2.",
    ),
    (r"^(blocks\.\d+)\.(?:intermediate\.dense|mlp\.weights_in)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+)\.lambda_([12])$", r"\1.gamma_\2"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:layernorm|post_layernorm)\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
    (r"^pooler\.query_tokens$", "attn_pool.cross_attn.latent"),
    (r"^pooler\.cross_attention_layer\.layer_norm([12])\.", r"attn_pool.norm\1."),
    (r"^pooler\.cross_attention_layer\.mlp\.", "attn_pool.mlp."),
    (r"^pooler\.cross_attention_layer\.cross_attn\.(q|k|v)_proj\.", r"attn_pool.cross_attn.\1."),
    (r"^head\.probe$", "attn_pool.latent"),
    (r"^head\.attention\.in_proj_", "attn_pool.in_proj."),
    (r"^head\.attention\.out_proj\.", "attn_pool.proj."),
    (r"^head\.layernorm\.", "attn_pool.norm."),
    (r"^head\.mlp\.", "attn_pool.mlp."),
    (r"^classifier\.layernorm\.", "fc_norm."),
    (r"^(?:cls_)?classifier\.(?:dense\.)?", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)
_PATTERNS = tuple((re.compile(pattern), replacement) for pattern, replacement in _NAMES)
_QUERY = re.compile(r"((?:attn_pool\.)?blocks\.\d+\.attn)\.q\.(weight|bias)")
_KEY_OF_POOL = re.compile(r"attn_pool\.cross_attn\.k\.(weight|bias)")
_GATE = re.compile(r"(blocks\.\d+\.mlp)\.gate_proj\.(weight|bias)")


def is_transformers(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a vision model of transformers."""
    return any(_PATCH_EMBEDDING.fullmatch(key) for key in state_dict)


def require_other(state_dict: Mapping[str, Tensor], path: Path) -> None:
    """Raise `ConfigError` if the keys are those of transformers, whose folder says more."""
    if is_transformers(state_dict):
        raise ConfigError(
            f"{path} is of transformers, whose config.json and preprocessor_config.json say what"
            ' the file does not; serve their folder with timm = "local-dir:FOLDER"'
        )


def name_in_timm(key: str) -> str:
    """Return timm's name of a key. Queries, keys and values are still apart, as are gates."""
    for pattern, replacement in _PATTERNS:
        key = pattern.sub(replacement, key)
    return key


def transformers_to_timm(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Return the vision model in ``state_dict`` with timm's names and shapes."""
    renamed = {
        name_in_timm(key): value for key, value in state_dict.items() if not _LEFT_OUT.match(key)
    }
    _add_batch_axis(renamed)
    join_attention(renamed)
    _join_gates(renamed)
    _split_attention_pool(renamed)
    _join_attentive_pooler(renamed)
    return renamed


def names_in_file(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in the file of each tensor that `transformers_to_timm` renames."""
    names = {}
    for key in state_dict:
        name = name_in_timm(key)
        name = _QUERY.sub(r"\1.qkv.\2", name)
        name = _KEY_OF_POOL.sub(r"attn_pool.cross_attn.kv.\1", name)
        name = _GATE.sub(r"\1.fc1.\2", name)
        names[name] = key
    return names


def _add_batch_axis(tensors: StateDict) -> None:
    """Give the class token and the positions of CLIP and SigLIP the shapes ``(1, N, D)``."""
    for key in ("cls_token", "pos_embed"):
        tensor = tensors.get(key)
        if tensor is not None and tensor.ndim < 3:
            tensors[key] = tensor.reshape(1, -1, tensor.shape[-1])


def join_attention(tensors: StateDict) -> None:
    """Join the layers of queries, keys and values. BEiT's keys have no bias: timm keeps two."""
    for match in [match for match in map(_QUERY.fullmatch, tensors) if match]:
        attention = match[1]
        kind = match[2]
        names = [f"{attention}.{part}.{kind}" for part in "qkv"]
        if all(name in tensors for name in names):
            tensors[f"{attention}.qkv.{kind}"] = torch.cat([tensors.pop(name) for name in names])
        elif kind == "bias" and names[1] not in tensors and names[2] in tensors:
            tensors[f"{attention}.q_bias"] = tensors.pop(names[0])
            tensors[f"{attention}.v_bias"] = tensors.pop(names[2])


def fill_key_biases(tensors: StateDict) -> None:
    """Join the biases of queries and values: keys have none, which is a bias of 0."""
    for name in [key for key in tensors if key.endswith(".q_bias")]:
        attention = name.removesuffix("q_bias")
        query = tensors.pop(name)
        value = tensors.pop(f"{attention}v_bias")
        tensors[f"{attention}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])


def _join_gates(tensors: StateDict) -> None:
    """Join the two first layers of a SwiGLU: the gate comes first, as in timm's ``GluMlp``."""
    for match in [match for match in map(_GATE.fullmatch, tensors) if match]:
        gate = match[0]
        up = f"{match[1]}.up_proj.{match[2]}"
        if up in tensors:
            tensors[f"{match[1]}.fc1.{match[2]}"] = torch.cat([tensors.pop(gate), tensors.pop(up)])


def _split_attention_pool(tensors: StateDict) -> None:
    """Split the projection of SigLIP's pooling into that of the query and that of the tokens."""
    for kind in ("weight", "bias"):
        projection = tensors.pop(f"attn_pool.in_proj.{kind}", None)
        if projection is not None:
            width = len(projection) // 3
            tensors[f"attn_pool.q.{kind}"] = projection[:width]
            tensors[f"attn_pool.kv.{kind}"] = projection[width:]


def _join_attentive_pooler(tensors: StateDict) -> None:
    """Join the layers of keys and values that the query of V-JEPA 2's pooler attends to."""
    for match in [match for match in map(_KEY_OF_POOL.fullmatch, tensors) if match]:
        values = f"attn_pool.cross_attn.v.{match[1]}"
        if values in tensors:
            joined = torch.cat([tensors.pop(match[0]), tensors.pop(values)])
            tensors[f"attn_pool.cross_attn.kv.{match[1]}"] = joined
