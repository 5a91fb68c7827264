"""The variants of attention, norms, GELU and patches that a GPU runs."""

from __future__ import annotations

from tests.tome_core.backends.cuda.compiler import Case
from tome_core.backends.cuda import attention, gelu, norms, patches
from tome_core.backends.cuda.launch_config import DEFAULT_CONFIG


def attend(
    dtype: str,
    tiles: attention.Tiles,
    width: int,
    has_sizes: bool = True,
    packed: bool = True,
) -> Case:
    """Packed, or, as where queries and keys are turned, values alone a view of what was packed."""
    heads = 12
    apart = 3 * heads * width
    rows = (apart, apart, apart) if packed else (apart // 3, apart // 3, apart)
    tensors = ("queries", "keys", "values", "out")
    kind = f"{'sizes' if has_sizes else ''} {'' if packed else 'turned'}"
    return Case(
        name=f"attention {dtype} {width} {tiles.queries} {tiles.stages} {kind}",
        kernel=attention.attention_kernel,
        types={
            **dict.fromkeys(tensors, dtype),
            "sizes": "*fp32",
            "starts": "*i32",
            "blocks": "i32",
        },
        constants=attention.constants(rows, packed, width, heads, has_sizes, tiles),
        aligned=tensors,
        warps=tiles.warps,
        stages=tiles.stages,
    )


def add_norm(dtype: str, width: int, has_branch: bool = True) -> Case:
    rows = norms.choose_rows(width)
    tensors = ("x", "branch", "weight", "shift", "total", "normed")
    return Case(
        name=f"norm {dtype} {width} {'branch' if has_branch else ''}",
        kernel=norms.add_norm_kernel,
        types={**dict.fromkeys(tensors, dtype), "tokens": "i32"},
        constants=norms.constants(width, 1e-6, has_branch, rows),
        aligned=tensors,
        warps=rows.warps,
    )


def gelu_of(dtype: str) -> Case:
    return Case(
        name=f"gelu {dtype}",
        kernel=gelu.gelu_kernel,
        types={"x": dtype, "units": "i32"},
        constants=gelu.constants(3072, DEFAULT_CONFIG),
        aligned=("x",),
        warps=DEFAULT_CONFIG.warps,
    )


def patch(pixels: str, side: int, dtype: str) -> Case:
    return Case(
        name=f"patches {pixels} {side} {dtype}",
        kernel=patches.patches_kernel,
        types={"pixels": pixels, "scale": "*fp32", "shift": "*fp32", "out": dtype},
        constants=patches.constants(
            (3, 224, 224), patches.PatchGeometry(side, side), patches.DEFAULT_CONFIG
        ),
        aligned=("pixels", "scale", "shift", "out"),
        warps=patches.DEFAULT_CONFIG.warps,
    )


BOTH = (attention.WITH_SIZES, attention.WITHOUT_SIZES)
ATTENTION = [
    *(attend("*bf16", tiles, width) for tiles in BOTH for width in (32, 64)),
    *(attend("*bf16", attention.WIDE, width) for width in (80, 128)),
    *(attend("*bf16", tiles, 64, False) for tiles in BOTH),
    attend("*fp16", attention.WITH_SIZES, 64),
    *(attend("*bf16", tiles, 64, tiles is BOTH[0], packed=False) for tiles in BOTH),
    *(attend("*bf16", attention.WIDE, width, packed=False) for width in (72, 88)),
    *(attend("*fp32", attention.FLOAT32, width) for width in (64, 128)),
]
ROWS = [
    *(add_norm("*bf16", width) for width in (384, 768, 1024, 2048)),
    add_norm("*bf16", 768, False),
    add_norm("*fp32", 768),
    *(gelu_of(dtype) for dtype in ("*bf16", "*fp32")),
    *(patch(pixels, 16, "*bf16") for pixels in ("*u8", "*fp32")),
    patch("*u8", 14, "*bf16"),
]
CASES = [*ATTENTION, *ROWS]
