"""How each type of model of transformers is built as one of timm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import GELUTanh, LayerNorm, QuickGELU, SwiGLUPacked
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from server.engine.loading.sinusoids import sinusoid_positions
from server.engine.loading.transformers_names import PROJECTION, fill_key_biases
from server.errors import ConfigError
from server.media.modality import Modality
from tome_core.adapters.class_and_mean import ClassAndMeanViT
from tome_core.networks.spectrogram_vit import SpectrogramViT
from tome_core.networks.video_vit import VideoViT
from tome_core.networks.vjepa2 import VJepa2

StateDict = dict[str, Tensor]
Config = Mapping[str, Any]

# By the name in ``hidden_act``.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_python": nn.GELU,
    "gelu_fast": GELUTanh,
    "gelu_new": GELUTanh,
    "gelu_pytorch_tanh": GELUTanh,
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
}
_VIT: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
}
_BEIT: dict[str, Any] = {
    **_VIT,
    "layer_scale_init_value": 0.1,
    "use_absolute_position_embeddings": False,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
}
_DINOV2: dict[str, Any] = {
    **_VIT,
    "layer_norm_eps": 1e-6,
    "mlp_ratio": 4,
    "use_swiglu_ffn": False,
    "num_register_tokens": 4,
}
_SIGLIP: dict[str, Any] = {
    **_VIT,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
_CLIP: dict[str, Any] = {
    **_VIT,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "patch_size": 32,
}
_AST: dict[str, Any] = {
    **_VIT,
    "num_channels": 1,
    "frequency_stride": 10,
    "time_stride": 10,
    "max_length": 1024,
    "num_mel_bins": 128,
}
_VIDEOMAE: dict[str, Any] = {
    **_VIT,
    "num_frames": 16,
    "tubelet_size": 2,
    "use_mean_pooling": True,
}
_VIVIT: dict[str, Any] = {
    **_VIT,
    "hidden_act": "gelu_fast",
    "layer_norm_eps": 1e-6,
    "num_frames": 32,
    "tubelet_size": (2, 16, 16),
}
_VJEPA2: dict[str, Any] = {
    **_VIT,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4.0,
    "layer_norm_eps": 1e-6,
    "image_size": 256,
    "num_frames": 64,
    "tubelet_size": 2,
    "num_pooler_layers": 3,
}
# What other types call the fields of its configuration.
_VJEPA2_NAMES = {
    "crop_size": "image_size",
    "frames_per_clip": "num_frames",
    "in_chans": "num_channels",
}


def _build_vit(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    return VisionTransformer(**arguments)


def _build_deit(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build DeiT with both heads; or with that of the class token, or none.

    The distillation token is then a register: other tokens attend to it, and no head reads it.
    """
    if "head_dist.weight" in tensors:
        return VisionTransformerDistilled(**arguments)
    if "dist_token" in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    return VisionTransformer(reg_tokens=1, **arguments)


def _build_beit(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    activation = arguments.pop("act_layer")
    averages = config["use_mean_pooling"]
    beit = Beit(
        global_pool="avg" if averages else "token",
        init_values=config["layer_scale_init_value"] or None,
        use_abs_pos_emb=config["use_absolute_position_embeddings"],
        use_rel_pos_bias=config["use_relative_position_bias"],
        use_shared_rel_pos_bias=config["use_shared_relative_position_bias"],
        **arguments,
    )
    for block in beit.blocks:
        block.mlp.act = activation()
    return beit


def _build_dinov2(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    registers = tensors.get("reg_token")
    if registers is not None and config["num_register_tokens"]:
        # Registers have no positions; timm keeps some for all prefix tokens or for none.
        arguments["reg_tokens"] = config["num_register_tokens"]
        _move_class_position(tensors)
        arguments["no_embed_class"] = True
    if config["use_swiglu_ffn"]:
        arguments["mlp_layer"] = SwiGLUPacked
        arguments["act_layer"] = nn.SiLU
    arguments["init_values"] = 1.0  # LayerScale; its values are in the file
    if "head.weight" in tensors:
        return ClassAndMeanViT(**arguments)
    return VisionTransformer(**arguments)


def _move_class_position(tensors: StateDict) -> None:
    """Add the class token's position to the class token."""
    position = tensors.get("pos_embed")
    if position is not None and "cls_token" in tensors:
        tensors["cls_token"] = tensors["cls_token"] + position[:, :1]
        tensors["pos_embed"] = position[:, 1:]


def _build_siglip(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build SigLIP: its classifier reads the mean of all tokens, its embedding is attention's."""
    pools_by_attention = config["vision_use_head"] and "head.weight" not in tensors
    if not pools_by_attention:
        _drop(tensors, "attn_pool.")
    return VisionTransformer(
        class_token=False,
        global_pool="map" if pools_by_attention else "avg",
        fc_norm=False,
        **arguments,
    )


def _build_clip(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build CLIP: its classifier reads the mean of patches without a norm.

    With its projection among the tensors, that is the head, and reads the class token.
    """
    projection = tensors.pop(PROJECTION, None)
    has_classifier = "head.weight" in tensors
    if projection is not None:
        arguments["num_classes"] = len(projection)
    if has_classifier:
        _drop(tensors, "norm.")
    vit = VisionTransformer(
        pre_norm=True,
        final_norm=not has_classifier,
        global_pool="avg" if has_classifier else "token",
        **arguments,
    )
    if projection is not None:
        tensors["head.weight"] = projection
        tensors["head.bias"] = torch.zeros(len(projection))
    return vit


def _build_ast(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build AST: the mean of its two tokens, and with a classifier a norm before it."""
    if "dist_token" in tensors:
        tensors["reg_token"] = tensors.pop("dist_token")
    vit = SpectrogramViT(
        stride=(config["frequency_stride"], config["time_stride"]),
        head_norm_eps=config["layer_norm_eps"],
        **arguments,
    )
    if "head.weight" not in tensors:
        vit.fc_norm = nn.Identity()
    return vit


def _build_videomae(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build VideoMAE: the mean of all tokens, with a classifier after a norm, else before one.

    Raises:
        ConfigError: its classifier reads the first tubelet.
    """
    fill_key_biases(tensors)
    averages = config["use_mean_pooling"]
    has_classifier = "head.weight" in tensors
    if has_classifier and not averages:
        raise ConfigError(
            "use_mean_pooling = false with a classifier, which then reads the first tubelet of a"
            " clip, is not supported: that tubelet may merge into another token"
        )
    arguments["qkv_bias"] = "blocks.0.attn.qkv.bias" in tensors
    vit = VideoViT(fc_norm=has_classifier, final_norm=not averages, **arguments)
    if has_classifier:
        vit.fc_norm = LayerNorm(config["hidden_size"], eps=1e-5)  # not that of config.json
    if "pos_embed" not in tensors:
        tensors["pos_embed"] = sinusoid_positions(vit.patch_embed.num_patches, vit.embed_dim)
    return vit


def _build_vivit(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    return VideoViT(class_token=True, global_pool="token", **arguments)


def _build_vjepa2(config: Config, tensors: StateDict, arguments: dict[str, Any]) -> nn.Module:
    """Build V-JEPA 2: with a classifier it pools by attention, else by the mean of all tokens."""
    # The MLPs of the pooler are 4 times as wide as a token, whatever ``mlp_ratio`` says.
    return VJepa2(pooler_depth=config["num_pooler_layers"], pooler_mlp_ratio=4.0, **arguments)


def _drop(tensors: StateDict, prefix: str) -> None:
    for key in [key for key in tensors if key.startswith(prefix)]:
        del tensors[key]


@dataclass(frozen=True)
class Family:
    """A type of model in transformers.

    Attributes:
        build: gives timm's model for the configuration, the tensors, which it may change, and the
            arguments that all models of timm have.
        defaults: of its configuration class. Files may leave out what equals the default.
        processor: see `read_preprocessor`; of images and video.
        antialias: whether transformers resizes its positions with antialiasing.
        modality: what it takes.
        stride: of video: see `VideoTransform`; as the authors of the model sample.
        has_projection: whether a linear layer leads to the space that images share with texts.
        renamed: what the other types call fields that its configuration calls otherwise.
    """

    build: Callable[[Config, StateDict, dict[str, Any]], nn.Module]
    defaults: dict[str, Any]
    processor: str
    antialias: bool = False
    modality: Modality = Modality.IMAGE
    stride: int = 4
    has_projection: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    "vit": Family(_build_vit, _VIT, "ViT"),
    "deit": Family(_build_deit, _VIT, "DeiT"),
    "beit": Family(_build_beit, _BEIT, "Beit"),
    "dinov2": Family(_build_dinov2, {**_DINOV2, "patch_size": 14}, "Bit"),
    "dinov2_with_registers": Family(_build_dinov2, _DINOV2, "Bit", antialias=True),
    "siglip": Family(_build_siglip, _SIGLIP, "Siglip"),
    "siglip_vision_model": Family(_build_siglip, _SIGLIP, "Siglip"),
    "clip": Family(_build_clip, _CLIP, "CLIP", has_projection=True),
    "clip_vision_model": Family(_build_clip, _CLIP, "CLIP", has_projection=True),
    "audio-spectrogram-transformer": Family(_build_ast, _AST, "", modality=Modality.AUDIO),
    "videomae": Family(_build_videomae, _VIDEOMAE, "VideoMAE", modality=Modality.VIDEO),
    "vivit": Family(_build_vivit, _VIVIT, "Vivit", modality=Modality.VIDEO, stride=2),
    "vjepa2": Family(
        _build_vjepa2, _VJEPA2, "VJEPA2", modality=Modality.VIDEO, renamed=_VJEPA2_NAMES
    ),
}
