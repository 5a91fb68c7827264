"""`python -m benchmarks.video`: how much faster merging makes the published models of video.

MAE-ST ViT-L and VideoMAE ViT-S with random weights, and by name VideoMAE ViT-B and ViViT-B, from
uint8 clips of 224 x 224 pixels (see `benchmarks.speedup`). The exit code is 1 if a speed-up is
below its bar.
"""

from __future__ import annotations

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from benchmarks.speedup import Level, Model, command_line
from tome_core.networks.video_architectures import VIDEO_ARCHITECTURES

DEFAULT_BATCHES = (1, 2)
_, SMALL, BASE, LARGE, _ = VIDEO_ARCHITECTURES
NORMALISATION = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
MODELS = (
    Model(
        name="MAE-ST ViT-L",
        timm=LARGE,
        levels=(
            Level("65", bar=2.0, published="2.2x (ToMe)"),
            Level("65:-1", bar=2.9, published="3.4x (ToMe)"),
        ),
        arguments={"class_token": True},
        **NORMALISATION,
    ),
    Model(
        name="VideoMAE ViT-S",
        timm=SMALL,
        levels=(Level("130", bar=2.0), Level("130:-1")),
        **NORMALISATION,
    ),
    Model(
        name="VideoMAE ViT-B",
        timm=BASE,
        levels=(Level("150", published="2.55x (arXiv 2506.03885)"),),
        **NORMALISATION,
    ),
    Model(
        name="ViViT-B",
        timm=BASE,
        levels=(Level("300"),),
        arguments={"frames": 32, "class_token": True, "global_pool": "token"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
)
DEFAULT_MODELS = MODELS[:2]


def main() -> int:
    """Command line."""
    return command_line("benchmarks.video", __doc__, MODELS, DEFAULT_MODELS, DEFAULT_BATCHES)


if __name__ == "__main__":
    raise SystemExit(main())
