"""Token Merging (ToMe, Bolya et al., ICLR 2023, arXiv 2210.09461) for timm Vision Transformers.

    model  = tome_core.patch(timm.create_model("vit_small_patch16_224", pretrained=True))
    logits = model(images, r=16)               # 16 tokens merged away in every block
    logits = model(images, r=[0, 8, 16, 16])   # one r per image, one forward pass, no padding

Names are imported on first use, so that ``tome_core.schedule``, which is pure Python, needs no
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tome_core.errors import UnsupportedModelError
    from tome_core.matching import Bipartite, Kth, Matcher, Random
    from tome_core.model import MergedViT
    from tome_core.optimizing import optimize
    from tome_core.outputs import Outputs
    from tome_core.pairs import Pairs
    from tome_core.patching import patch
    from tome_core.pixels import Pixels
    from tome_core.schedule import Schedule
    from tome_core.trace import Trace

_MODULES = {
    "Bipartite": "matching",
    "Kth": "matching",
    "Matcher": "matching",
    "MergedViT": "model",
    "Outputs": "outputs",
    "Pairs": "pairs",
    "Pixels": "pixels",
    "Random": "matching",
    "Schedule": "schedule",
    "Trace": "trace",
    "UnsupportedModelError": "errors",
    "optimize": "optimizing",
    "patch": "patching",
}

__all__ = [
    "Bipartite",
    "Kth",
    "Matcher",
    "MergedViT",
    "Outputs",
    "Pairs",
    "Pixels",
    "Random",
    "Schedule",
    "Trace",
    "UnsupportedModelError",
    "optimize",
    "patch",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_MODULES[name]}")
    value = getattr(module, name)
    # Store it, so that the next use is an ordinary look-up.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
