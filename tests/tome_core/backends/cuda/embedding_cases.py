"""The variants of embedding that a GPU runs."""

from __future__ import annotations

from tests.tome_core.backends.cuda.compiler import Case
from tome_core.backends.cuda import embedding, patches
from tome_core.backends.cuda.launch_config import DEFAULT_CONFIG


def assemble(dtype: str, tokens: int, prefix: int, width: int) -> Case:
    tensors = ("embedded", "table", "out")
    return Case(
        name=f"assemble {dtype} {prefix} {width}",
        kernel=embedding.assemble_kernel,
        types=dict.fromkeys(tensors, dtype),
        constants=embedding.constants(tokens, prefix, width, DEFAULT_CONFIG),
        aligned=tensors,
        warps=DEFAULT_CONFIG.warps,
    )


def patch(pixels: str, side: int, dtype: str, frames: int = 1, depth: int = 1) -> Case:
    geometry = patches.PatchGeometry(side, side, depth, frames)
    config = patches.choose_config(geometry)
    return Case(
        name=f"patches {pixels} {side} {dtype} {frames}",
        kernel=patches.patches_kernel,
        types={"pixels": pixels, "scale": "*fp32", "shift": "*fp32", "out": dtype},
        constants=patches.constants((3, frames * 224, 224), geometry, config),
        aligned=("pixels", "scale", "shift", "out"),
        warps=config.warps,
    )


CASES = [
    *(assemble("*bf16", 197, 1, width) for width in (192, 384, 768, 1024)),
    assemble("*bf16", 261, 5, 1024),
    assemble("*bf16", 196, 0, 768),
    assemble("*fp16", 197, 1, 768),
    assemble("*fp32", 197, 1, 768),
    *(patch("*u8", side, "*bf16") for side in (8, 32)),
    *(patch(pixels, 32, "*fp32") for pixels in ("*u8", "*fp32")),
    patch("*u8", 16, "*bf16", frames=16, depth=2),
]
