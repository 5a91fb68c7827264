"""Vision Transformers as their authors published them: their tensors' names and shapes, and a
forward pass of our own.

Small and random, but each ``state_dict()`` has the names of the public checkpoints. Nothing of timm
is used, so what timm computes after loading such a file can be compared with it.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

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
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, 2)
        )
        weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """DINOv2's giant model."""

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
    """``scale``: ``ls`` as DINOv2 names LayerScale, ``gamma`` as DeiT III does, or none."""

    def __init__(self, scale: str = "", swiglu: bool = False) -> None:
        super().__init__()
        self.norm1 = LayerNorm()
        self.norm2 = LayerNorm()
        self.attn = Attention()
        self.mlp = SwiGlu() if swiglu else Mlp()
        if scale == "ls":
            self.ls1 = Scale()
            self.ls2 = Scale()
        if scale == "gamma":
            self.gamma_1, self.gamma_2 = (nn.Parameter(torch.empty(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        scales = [
            getattr(self, f"ls{i}", None) or (lambda y, i=i: getattr(self, f"gamma_{i}", 1) * y)
            for i in (1, 2)
        ]
        x = x + scales[0](self.attn(self.norm1(x)))
        return x + scales[1](self.mlp(self.norm2(x)))


class Original(nn.Module):
    """DeiT (also distilled, and III), MAE fine-tuned, and DINOv2 with a linear classifier, by their
    own names.
    """

    def __init__(
        self,
        size: tuple[int, int] = (32, 32),
        *,
        channels: int = 3,
        distilled: bool = False,
        registers: int = 0,
        mask_token: bool = False,
        average: bool = False,
        position_of_class: bool = True,
        scale: str = "",
        swiglu: bool = False,
    ) -> None:
        super().__init__()
        self.position_of_class = position_of_class
        grid = size[0] // PATCH * (size[1] // PATCH)
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, WIDTH, PATCH, PATCH)
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, grid + position_of_class + distilled, WIDTH))
        self.dist_token = nn.Parameter(torch.empty(1, 1, WIDTH)) if distilled else None
        self.register_tokens = nn.Parameter(torch.empty(1, registers, WIDTH)) if registers else None
        self.mask_token = nn.Parameter(torch.empty(1, WIDTH)) if mask_token else None
        self.blocks = nn.ModuleList(Block(scale, swiglu) for _ in range(DEPTH))
        if average:
            self.fc_norm = LayerNorm()
        else:
            self.norm = LayerNorm()
        self.average = average
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head_dist = nn.Linear(WIDTH, CLASSES) if distilled else None

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        front = [
            token.expand(len(images), -1, -1)
            for token in (self.cls_token, self.dist_token)
            if token is not None
        ]
        if self.position_of_class:
            x = torch.cat([*front, patches], 1) + self.pos_embed
        else:
            x = torch.cat([*front, patches + self.pos_embed], 1)
        if self.register_tokens is not None:  # after the class token, without positions
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(images), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        if self.average:
            return self.head(self.fc_norm(x[:, 1:].mean(1)))
        x = self.norm(x)
        if self.head_dist is not None:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(x[:, 0])


class SwagBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = LayerNorm()
        self.ln_2 = LayerNorm()
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS)
        self.mlp = nn.Sequential(
            OrderedDict(
                linear_1=nn.Linear(WIDTH, 4 * WIDTH),
                act=nn.GELU(),
                linear_2=nn.Linear(4 * WIDTH, WIDTH),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Swag(nn.Module):
    """SWAG fine-tuned end to end; tokens come first, ``(N, B, D)``."""

    def __init__(self, size: int = 32) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.conv_proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.empty((size // PATCH) ** 2 + 1, 1, WIDTH))
        self.encoder.layers = nn.Sequential(
            OrderedDict((f"layer_{i}", SwagBlock()) for i in range(DEPTH))
        )
        self.encoder.ln = LayerNorm()
        self.head = nn.Module()
        self.head.layers = nn.Sequential(OrderedDict(head=nn.Linear(WIDTH, CLASSES)))

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_proj(images).flatten(2).permute(2, 0, 1)
        x = (
            torch.cat([self.class_token.expand(-1, len(images), -1), x])
            + self.encoder.pos_embedding
        )
        return self.head.layers(self.encoder.ln(self.encoder.layers(x))[0])
