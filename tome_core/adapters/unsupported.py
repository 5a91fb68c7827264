"""Why the core refuses families of timm that resemble Vision Transformers.

A reason continues the sentence "the model is a ..., which".
"""

from __future__ import annotations

_WINDOWS = "attends within windows of a grid, and merged tokens no longer fill one"
_PYRAMID = (
    "is a pyramid: between its stages it pools tokens by their place on a grid, and merged tokens"
    " no longer fill one"
)
_CONVOLVES = "convolves its tokens on their grid, and merged tokens no longer fill one"

UNSUPPORTED_FAMILIES = {
    "Cait": (
        "mixes the attention weights of its heads, and attends from the class token alone in its"
        " last blocks"
    ),
    "CoaT": _CONVOLVES,
    "ConVit": "weighs attention by the distance of two patches, through a gate in each head",
    "CrossVit": "runs two sequences, of patches of different sizes, that attend to each other",
    "DaVit": _WINDOWS,
    "GlobalContextVit": _WINDOWS,
    "Hiera": _PYRAMID,
    "HieraDet": _PYRAMID,
    "Levit": _PYRAMID,
    "LevitDistilled": _PYRAMID,
    "MaxxVit": _CONVOLVES,
    "MultiScaleVit": _PYRAMID,
    "NaFlexVit": (
        "takes images of many sizes as patches padded to one length, and padding must not merge"
        " with patches"
    ),
    "Nest": _WINDOWS,
    "PoolingVisionTransformer": _PYRAMID,
    "PyramidVisionTransformerV2": _PYRAMID,
    "SwinTransformer": _WINDOWS,
    "SwinTransformerV2": _WINDOWS,
    "SwinTransformerV2Cr": _WINDOWS,
    "TNT": (
        "keeps the pixels of every patch as a sequence of its own, and a merged token has several"
        " of those"
    ),
    "TinyVit": _WINDOWS,
    "Twins": _WINDOWS,
    "VOLO": (
        "attends within the neighbourhood of each place on a grid (outlook attention), then pools"
        " it: a pyramid"
    ),
    "Visformer": _PYRAMID,
    "VisionTransformerSAM": (
        "attends within windows of a grid and returns it, and merged tokens no longer fill one"
    ),
    "Xcit": "attends across channels instead of tokens, and convolves its tokens on their grid",
}
