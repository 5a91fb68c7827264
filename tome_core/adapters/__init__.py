"""One module per family of timm models. Only this folder and `networks` import timm."""

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
from tome_core.adapters.class_and_mean import ClassAndMeanAdapter, ClassAndMeanViT
from tome_core.adapters.eva import EvaAdapter
from tome_core.adapters.relpos import RelPosAdapter
from tome_core.adapters.spectrogram import SpectrogramAdapter
from tome_core.adapters.unsupported import UNSUPPORTED_FAMILIES
from tome_core.adapters.vit import DistilledAdapter, VideoAdapter, ViTAdapter
from tome_core.adapters.vjepa2 import VJepa2Adapter
from tome_core.errors import UnsupportedModelError
from tome_core.networks.spectrogram_vit import SpectrogramViT
from tome_core.networks.video_vit import VideoViT
from tome_core.networks.vjepa2 import VJepa2

if TYPE_CHECKING:
    from tome_core.model import Adapter

_ADAPTERS: dict[type, Callable[[Any], Adapter]] = {
    VisionTransformer: ViTAdapter,
    ClassAndMeanViT: ClassAndMeanAdapter,
    SpectrogramViT: SpectrogramAdapter,
    VideoViT: VideoAdapter,
    VJepa2: VJepa2Adapter,
    VisionTransformerDistilled: DistilledAdapter,
    Eva: EvaAdapter,
    Beit: BeitAdapter,
    VisionTransformerRelPos: RelPosAdapter,
}


def adapt(network: nn.Module) -> Adapter:
    """Return the adapter of ``network``.

    Raises:
        UnsupportedModelError: there is no adapter for its family, or the adapter does not know one
            of its parts; the message names the part.
    """
    model_type = type(network)
    if model_type in _ADAPTERS:
        return _ADAPTERS[model_type](network)
    name = model_type.__name__
    is_from_timm = model_type.__module__.startswith("timm.")
    if is_from_timm and name in UNSUPPORTED_FAMILIES:
        raise UnsupportedModelError(f"the model is a {name}, which {UNSUPPORTED_FAMILIES[name]}")
    supported = ", ".join(known.__name__ for known in _ADAPTERS)
    raise UnsupportedModelError(
        f"the model is a {name}, which is not supported; supported: {supported}"
    )
