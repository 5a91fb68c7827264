"""One file per family of timm models; these are the only modules of the core that import timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

from tome_core.adapters.beit import BeitAdapter
from tome_core.adapters.eva import EvaAdapter
from tome_core.adapters.reasons import REASONS
from tome_core.adapters.relpos import RelPosAdapter
from tome_core.adapters.vit import DistilledAdapter, ViTAdapter
from tome_core.errors import UnsupportedModelError

if TYPE_CHECKING:
    from tome_core.model import Adapter

_ADAPTERS: dict[type, Callable[[Any], Adapter]] = {
    VisionTransformer: ViTAdapter,
    VisionTransformerDistilled: DistilledAdapter,
    Eva: EvaAdapter,
    Beit: BeitAdapter,
    VisionTransformerRelPos: RelPosAdapter,
}


def adapt(network: nn.Module) -> Adapter:
    """``network``, taken apart by the adapter of its family.

    Raises:
        UnsupportedModelError: there is none, or it does not understand some part; the message names
            the part.
    """
    adapter = _ADAPTERS.get(type(network))
    if adapter is None:
        kind = type(network)
        if kind.__module__.startswith("timm.") and kind.__name__ in REASONS:
            raise UnsupportedModelError(
                f"the model is a {kind.__name__}, which {REASONS[kind.__name__]}"
            )
        known = ", ".join(kind.__name__ for kind in _ADAPTERS)
        raise UnsupportedModelError(
            f"the model is a {kind.__name__}, which is not supported; supported: {known}"
        )
    return adapter(network)
