"""`python -m benchmarks.audio`: how much faster merging makes the published models of sound.

AudioMAE ViT-B and AST-B with random weights, from float32 spectrograms (see `benchmarks.speedup`).
The exit code is 1 if a speed-up is below its bar.
"""

from __future__ import annotations

import torch

from benchmarks.speedup import Level, Model, command_line
from tome_core.networks.audio_architectures import AST_ARCHITECTURES, AUDIOSET_CLASSES

DEFAULT_BATCHES = (4,)
MODELS = (
    Model(
        name="AudioMAE ViT-B",
        timm="vit_base_patch16_224",
        levels=(Level("40", bar=1.7, published="1.94x (ToMe)"),),
        arguments={
            "img_size": (1024, 128),
            "in_chans": 1,
            "global_pool": "avg",
            "num_classes": AUDIOSET_CLASSES,
        },
        activation="sigmoid",
        input_dtype=torch.float32,
    ),
    Model(
        name="AST-B",
        timm=AST_ARCHITECTURES[-1],
        levels=(Level("96", bar=1.8),),
        activation="sigmoid",
        input_dtype=torch.float32,
    ),
)


def main() -> int:
    """Command line."""
    return command_line("benchmarks.audio", __doc__, MODELS, MODELS, DEFAULT_BATCHES)


if __name__ == "__main__":
    raise SystemExit(main())
