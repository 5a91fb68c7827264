"""Key names of Hugging Face transformers' vision models, in timm's names.

Two generations of names are read: those of files (``encoder.layer.0.attention.attention.query``),
which transformers writes to this day, and those of modules since version 5
(``layers.0.attention.q_proj``), which ``model.state_dict()`` has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

_PATCH_EMBEDDING = re.compile(
    r"(?:[a-z0-9_]+\.)?embeddings\.patch_embeddings?(?:\.projection)?\.weight"
)
# Parts that take no part in what the server computes: the text models and projections of CLIP and
# SigLIP, the tokens of masked pre-training, the tanh layer of ViTModel's pooler_output, buffers.
_LEFT_OUT = re.compile(
    r"text_model\.|text_projection\.|visual_projection\.|logit_scale$|logit_bias$"
    r"|(?:.*\.)?(?:mask_token|position_ids|relative_position_index)$"
    r"|(?:.*\.)?pooler\.dense\."
)
_NAMES = (
    (
        r"^(?:vit|deit|beit|dinov2|dinov2_with_registers|vision_model"
        r"|audio_spectrogram_transformer)\.",
        "",
    ),
    (r"^embeddings\.(?:cls_token|class_embedding)$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings?(?:\.weight)?$", "pos_embed"),
    (r"^embeddings\.patch_embeddings?\.(?:projection\.)?", "patch_embed.proj."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"^(?:encoder\.relative_position_bias|shared_position_bias)\.", "rel_pos_bias."),
    (r"^(blocks\.\d+)\.(?:layernorm_before|layer_norm1)\.", r"\1.norm1."),
    (r"^(blocks\.\d+)\.(?:layernorm_after|layer_norm2)\.", r"\1.norm2."),
    (
        r"^(blocks\.\d+)\.(?:attention|self_attn)\.(?:o_proj|out_proj|output\.dense)\.",
        r"\1.attn.proj.",
    ),
    (r"^(blocks\.\d+)\.(?:attention\.attention\.)?relative_position_bias\.", r"\1.attn."),
    (
        r"^(blocks\.\d+)\.(?:attention\.attention|attention|self_attn)\.(q|k|v)(?:uery|ey|alue|_proj)\.",
        r"\1.attn.\2.",
    ),
    (r"^(blocks\.\d+)\.(?:intermediate\.dense|mlp\.weights_in)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.(?:output\.dense|mlp\.weights_out|mlp\.down_proj)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.layer_scale([12])\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+)\.lambda_([12])$", r"\1.gamma_\2"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(?:layernorm|post_layernorm)\.", "norm."),
    (r"^pooler\.layernorm\.", "fc_norm."),
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
_QUERY = re.compile(r"(blocks\.\d+\.attn)\.q\.(weight|bias)")
_GATE = re.compile(r"(blocks\.\d+\.mlp)\.gate_proj\.(weight|bias)")


def is_transformers(state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether the keys are those of a vision model of transformers."""
    return any(_PATCH_EMBEDDING.fullmatch(key) for key in state_dict)


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
    _join_attention(renamed)
    _join_gates(renamed)
    _split_attention_pool(renamed)
    return renamed


def names_in_file(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in the file of each tensor that `transformers_to_timm` renames."""
    names = {}
    for key in state_dict:
        name = name_in_timm(key)
        name = _QUERY.sub(r"\1.qkv.\2", name)
        name = _GATE.sub(r"\1.fc1.\2", name)
        names[name] = key
    return names


def _add_batch_axis(tensors: StateDict) -> None:
    """Give the class token and the positions of CLIP and SigLIP the shapes ``(1, N, D)``."""
    for key in ("cls_token", "pos_embed"):
        tensor = tensors.get(key)
        if tensor is not None and tensor.ndim < 3:
            tensors[key] = tensor.reshape(1, -1, tensor.shape[-1])


def _join_attention(tensors: StateDict) -> None:
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
