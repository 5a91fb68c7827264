"""The Audio Spectrogram Transformer (AST, Gong et al., Interspeech 2021, arXiv 2104.01778)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tome_core.networks.overlapping_patches import OverlapPatchEmbed

# Its last norm has another epsilon than the others in the authors' models.
HEAD_NORM_EPS = 1e-5


class SpectrogramViT(VisionTransformer):  # type: ignore[misc]
    """timm's ViT over overlapping patches of a spectrogram ``(B, 1, mel bins, frames)``.

    It has a class token and a distillation token, which is timm's ``reg_token``. The mean of the
    two, after the final norm, goes through a norm of its own (``fc_norm``) and the classifier.

    Args:
        global_pool: ``token`` for the mean of these two tokens; ``avg`` for the mean of the
            patches, as models that SSAST pre-trained are fine-tuned.
        stride: rows and columns from one patch to the next.
        head_norm_eps: epsilon of ``fc_norm``.
        arguments: of timm's ViT.
    """

    def __init__(
        self,
        *,
        global_pool: Literal["token", "avg"] = "token",
        stride: int | tuple[int, int] = 10,
        head_norm_eps: float = HEAD_NORM_EPS,
        in_chans: int = 1,
        **arguments: Any,
    ) -> None:
        super().__init__(
            **arguments,
            in_chans=in_chans,
            global_pool=global_pool,
            fc_norm=False,
            class_token=True,
            reg_tokens=1,
            embed_layer=partial(OverlapPatchEmbed, stride=stride),
        )
        self.fc_norm: nn.Module = nn.LayerNorm(self.embed_dim, eps=head_norm_eps)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool ``(B, N, D)`` -> ``(B, D)``."""
        if self.global_pool == "token":
            return x[:, : self.num_prefix_tokens].mean(dim=1)
        return super().pool(x, pool_type)
