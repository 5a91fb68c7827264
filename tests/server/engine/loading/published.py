"""Small Vision Transformers with the key names and shapes of published checkpoints.

They do not use timm, so they are a reference for what timm computes after loading such a file. The
weights are random.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
DEPTH = 2
HEADS = 2
PATCH = 8
CLASSES = 5
LayerNorm = partial(nn.LayerNorm, WIDTH, eps=1e-6)


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).chunk(3, dim=2)
        q = split_heads(queries)
        k = split_heads(keys)
        v = split_heads(values)
        scale = q.shape[3] ** -0.5
        weights = (scale * q @ k.transpose(2, 3)).softmax(dim=3)
        heads = weights @ v
        return self.proj(heads.transpose(1, 2).flatten(2))


def split_heads(x: Tensor) -> Tensor:
    """``(B, N, D)`` to ``(B, heads, N, D / heads)``."""
    return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """The MLP of DINOv2's giant model."""

    def __init__(self) -> None:
        super().__init__()
        self.w12 = nn.Linear(WIDTH, 4 * WIDTH)
        self.w3 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * x


class Block(nn.Module):
    """A block with LayerScale.

    Args:
        layer_scale: ``ls`` for DINOv2's names of it, ``gamma`` for DeiT III's; empty for none.
        swiglu: use `SwiGlu` instead of `Mlp`.
    """

    def __init__(self, layer_scale: str = "", swiglu: bool = False) -> None:
        super().__init__()
        self.norm1 = LayerNorm()
        self.norm2 = LayerNorm()
        self.attn = Attention()
        self.mlp = SwiGlu() if swiglu else Mlp()
        self.layer_scale = layer_scale
        if layer_scale == "ls":
            self.ls1 = Scale()
            self.ls2 = Scale()
        if layer_scale == "gamma":
            self.gamma_1 = nn.Parameter(torch.empty(WIDTH))
            self.gamma_2 = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attn(self.norm1(x))
        if self.layer_scale == "ls":
            attended = self.ls1(attended)
        if self.layer_scale == "gamma":
            attended = self.gamma_1 * attended
        x = x + attended
        transformed = self.mlp(self.norm2(x))
        if self.layer_scale == "ls":
            transformed = self.ls2(transformed)
        if self.layer_scale == "gamma":
            transformed = self.gamma_2 * transformed
        return x + transformed


class Original(nn.Module):
    """DeiT (also distilled, and III), fine-tuned MAE, and DINOv2 with a linear classifier."""

    def __init__(
        self,
        size: tuple[int, int] = (32, 32),
        *,
        channels: int = 3,
        distilled: bool = False,
        registers: int = 0,
        mask_token: bool = False,
        average_pool: bool = False,
        class_position: bool = True,
        layer_scale: str = "",
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.class_position = class_position
        patches = size[0] // PATCH * (size[1] // PATCH)
        positions = patches + class_position + distilled
        self.patch_embed: Any = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, positions, WIDTH))
        self.dist_token: nn.Parameter | None = None
        if distilled:
            self.dist_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.register_tokens: nn.Parameter | None = None
        if registers:
            self.register_tokens = nn.Parameter(torch.empty(1, registers, WIDTH))
        if mask_token:
            self.mask_token = nn.Parameter(torch.empty(1, WIDTH))
        blocks = [Block(layer_scale, swiglu) for _ in range(DEPTH)]
        self.blocks = nn.ModuleList(blocks)
        if average_pool:
            self.fc_norm = LayerNorm()
        else:
            self.norm = LayerNorm()
        self.average_pool = average_pool
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head_dist = nn.Linear(WIDTH, CLASSES) if distilled else None

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        if self.average_pool:
            pooled = x[:, 1:].mean(dim=1)
            return self.head(self.fc_norm(pooled))
        x = self.norm(x)
        logits = self.head(x[:, 0])
        if self.head_dist is not None:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits

    def embed(self, images: Tensor) -> Tensor:
        """``(B, N, D)``: the prefix tokens, then the patches."""
        batch = len(images)
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        if not self.class_position:
            patches = patches + self.pos_embed
        tokens = [self.cls_token.expand(batch, -1, -1)]
        if self.dist_token is not None:
            tokens.append(self.dist_token.expand(batch, -1, -1))
        x = torch.cat([*tokens, patches], dim=1)
        if self.class_position:
            x = x + self.pos_embed
        if self.register_tokens is not None:
            # Registers come after the class token, and have no positions.
            registers = self.register_tokens.expand(batch, -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        return x


class SwagBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = LayerNorm()
        self.ln_2 = LayerNorm()
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS)
        layers = OrderedDict(
            linear_1=nn.Linear(WIDTH, 4 * WIDTH),
            act=nn.GELU(),
            linear_2=nn.Linear(4 * WIDTH, WIDTH),
        )
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        attended, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + attended
        return x + self.mlp(self.ln_2(x))


class Swag(nn.Module):
    """SWAG, fine-tuned end to end. Its tensors are ``(N, B, D)``."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.conv_proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        positions = (size // PATCH) ** 2 + 1
        blocks: OrderedDict[str, nn.Module] = OrderedDict(
            (f"layer_{i}", SwagBlock()) for i in range(DEPTH)
        )
        self.encoder: Any = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.empty(positions, 1, WIDTH))
        self.encoder.layers = nn.Sequential(blocks)
        self.encoder.ln = LayerNorm()
        classifier = nn.Linear(WIDTH, CLASSES)
        self.head: Any = nn.Module()
        self.head.layers = nn.Sequential(OrderedDict(head=classifier))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).permute(2, 0, 1)
        class_token = self.class_token.expand(-1, len(images), -1)
        x = torch.cat([class_token, patches])
        x = x + self.encoder.pos_embedding
        x = self.encoder.layers(x)
        x = self.encoder.ln(x)
        return self.head.layers(x[0])
