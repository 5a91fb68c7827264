"""Small models with weights that hide nothing, and hypothesis strategies for what they are called
with.
"""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from timm.layers import Attention, RmsNorm, SwiGLU, SwiGLUPacked
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tests.tome_core.oracle import Spec
from tome_core.schedule import Schedule

DEPTH = 3
CLASSES = 5

VARIANTS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "average-no-prefix": {"class_token": False, "global_pool": "avg"},
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 4},
    "registers-only": {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
    "layer-scale": {"init_values": 0.3},
    "qk-norm": {"qk_norm": True},
    "one-head": {"num_heads": 1},
    "four-heads": {"num_heads": 4},
    "average-of-patches": {"global_pool": "avg"},
    "average-with-prefix": {"global_pool": "avg", "pool_include_prefix": True, "reg_tokens": 1},
    "average-without-fc-norm": {"global_pool": "avg", "fc_norm": False},
    "maximum": {"global_pool": "max"},
    "average-and-maximum": {"global_pool": "avgmax", "class_token": False},
    "gated": {"gated": True},
    "attention-norm": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "pre-norm": {"pre_norm": True},
    "no-final-norm": {"final_norm": False},
    "swiglu": {"mlp_layer": SwiGLU},
    "swiglu-packed": {"mlp_layer": SwiGLUPacked},
    "wide-heads": {"attn_head_dim": 12},
    "no-qkv-bias": {"qkv_bias": False, "proj_bias": False},
    "no-embed-class": {"no_embed_class": True, "reg_tokens": 2},
    "no-position": {"pos_embed": "none"},
    "features-only": {"num_classes": 0},
    "distilled-features-only": {"distilled": True, "num_classes": 0},
    "attention-pool": {"global_pool": "map", "reg_tokens": 2},
    "attention-pool-with-prefix": {"global_pool": "map", "pool_include_prefix": True},
    "rms-norm": {"norm_layer": RmsNorm, "qk_norm": True},
    "dynamic-size": {"dynamic_img_size": True},
    "post-norm": {
        "block_fn": ResPostBlock,
        "init_values": 0.5,
        "class_token": False,
        "global_pool": "avg",
    },
    "post-norm-swiglu": {"block_fn": ResPostBlock, "mlp_layer": SwiGLU, "qk_norm": True},
    "differential": {"attn_layer": "diff", "init_values": 0.3, "reg_tokens": 1},
    "differential-post-norm": {
        "attn_layer": "diff",
        "block_fn": ResPostBlock,
        "qk_norm": True,
        "scale_attn_norm": True,
    },
    "side-by-side": {"block_fn": ParallelThingsBlock, "init_values": 0.3},
    "side-by-side-gated": {
        "block_fn": ParallelThingsBlock,
        "gated": True,
        "class_token": False,
        "global_pool": "avg",
    },
}
# These the oracle does not spell out; they are compared with timm at r=0 only.
BEYOND_ORACLE: dict[str, dict[str, Any]] = {
    "fixed-dropout": {
        "drop_rate": 0.1,
        "attn_drop_rate": 0.1,
        "proj_drop_rate": 0.1,
        "drop_path_rate": 0.1,
    },
}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with numbers large enough that no part is nearly the identity or nearly
    zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=0.2, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)


def make_vit(seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A small VisionTransformer in evaluation mode, of 16 patches unless ``img_size`` says
    otherwise.
    """
    kind = VisionTransformerDistilled if options.pop("distilled", False) else VisionTransformer
    attention = {name: options.pop(name) for name in ("gated", "attn_head_dim") if name in options}
    sizes = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": DEPTH,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    }
    vit = kind(**{**sizes, "num_classes": CLASSES, **options})
    if attention:
        # VisionTransformer has no argument for these; models that have them are built in the same
        # way.
        for block in vit.blocks:
            for part in getattr(block, "attns", [block]):
                part.attn = Attention(vit.embed_dim, num_heads=2, qkv_bias=True, **attention)
    randomise(vit, seed)
    return vit.eval().to(dtype)


def make_images(
    batch: int, size: tuple[int, int] = (16, 16), seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Noise of unit variance."""
    return torch.randn(
        batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def as_schedule(spec: Spec) -> int | Schedule:
    """What tome_core takes, for what the oracle takes."""
    if isinstance(spec, list):
        return Schedule.per_layer(spec)
    return Schedule.linear(spec[0], inflection=spec[1]) if isinstance(spec, tuple) else spec


def specs(depth: int = DEPTH, most: int = 12) -> st.SearchStrategy[Spec]:
    """Constant, linear and explicit schedules, some of which ask for more than there is."""
    number = st.integers(0, most)
    linear = st.tuples(number, st.floats(-1, 1))
    return st.one_of(number, linear, st.lists(number, max_size=depth))
