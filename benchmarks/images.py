"""`python -m benchmarks.images`: how much faster merging makes models of images of ToMe's paper.

MAE ViT-L and DeiT-S with random weights, from uint8 images of 224 x 224 pixels (see
`benchmarks.speedup`). `make bench` compares with other implementations.
"""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.speedup import Level, Model, command_line

DEFAULT_BATCHES = (8,)
NORMALISATION = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
MODELS = (
    Model(
        name="MAE ViT-L",
        timm="vit_large_patch16_224",
        levels=(
            Level("8", published="1.97x (ToMe)"),
            Level("8:-1", published="2.59x (ToMe)"),
        ),
        arguments={"global_pool": "avg"},
        **NORMALISATION,
    ),
    Model(
        name="DeiT-S",
        timm="deit_small_patch16_224",
        levels=(Level("13", published="1.67x (ToMe)"),),
        **NORMALISATION,
    ),
)


def main() -> int:
    """Command line."""
    return command_line("benchmarks.images", __doc__, MODELS, MODELS, DEFAULT_BATCHES)


if __name__ == "__main__":
    raise SystemExit(main())
