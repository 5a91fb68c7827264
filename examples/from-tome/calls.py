"""What programs do with the published ToMe package, done with tome_core.

python examples/from-tome/calls.py
"""

from __future__ import annotations

import timm
import torch

import tome_core
from tome_core import Schedule

torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224").eval()
images = torch.randn(2, 3, 224, 224)

# tome.patch.timm(vit)
model = tome_core.patch(vit)

with torch.inference_mode():
    # vit.r = 16; vit(images)
    logits = model(images, r=16)
    print("logits", tuple(logits.shape))

    # vit.r = (8, -1.0); vit(images)
    logits = model(images, r=Schedule.linear(8, inflection=-1))

    # vit.r = [30, 0, 5]; vit(images)
    logits = model(images, r=Schedule.per_layer([30, 0, 5]))

    # tome.patch.timm(vit, trace_source=True); vit(images)
    # vit._tome_info["source"], vit._tome_info["size"]
    trace = model.trace(images, r=16)
    print("source", tuple(trace.source.shape), "tokens left", len(trace.sizes[0]))

    # Without a counterpart: each image has an r of its own, in one forward pass.
    logits = model(images, r=[0, 16])
    print("the first image as by timm:", torch.allclose(logits[0], vit(images)[0], atol=1e-4))
