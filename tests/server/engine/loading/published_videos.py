"""Small models of video with the key names and shapes of published checkpoints.

They do not use timm or transformers, so they are a reference for what loads. Clips are
``(B, 3, T, H, W)``. The weights are random.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.server.engine.loading.published import (
    CLASSES,
    DEPTH,
    HEADS,
    PATCH,
    WIDTH,
    Block,
    LayerNorm,
    split_heads,
)

TUBELET = 2


class Embedding(nn.Module):
    """Tubelets by a convolution, ordered by time, row and column."""

    def __init__(self, patch: int = PATCH, tubelet: int = TUBELET) -> None:
        super().__init__()
        kernel = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, WIDTH, kernel, kernel)

    def forward(self, clips: Tensor) -> Tensor:
        return self.proj(clips).flatten(2).transpose(1, 2)


class AttentionWithoutKeyBias(nn.Module):
    """VideoMAE's: one weight for queries, keys and values, and biases of the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self.q_bias = nn.Parameter(torch.empty(WIDTH))
        self.v_bias = nn.Parameter(torch.empty(WIDTH))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).chunk(3, dim=2)
        return _attend(queries + self.q_bias, keys, values + self.v_bias, self.proj)


class SeparateAttention(nn.Module):
    """MAE-ST's: a layer each for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return _attend(self.q(x), self.k(x), self.v(x), self.proj)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, proj: nn.Module) -> Tensor:
    q, k, v = split_heads(queries), split_heads(keys), split_heads(values)
    weights = (q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS)).softmax(dim=3)
    output: Tensor = proj((weights @ v).transpose(1, 2).flatten(2))
    return output


def _blocks(attention: type[nn.Module], mlp_width: int = 4 * WIDTH) -> nn.ModuleList:
    blocks: Any = nn.ModuleList([Block() for _ in range(DEPTH)])
    for block in blocks:
        block.attn = attention()
        block.mlp.fc1 = nn.Linear(WIDTH, mlp_width)
        block.mlp.fc2 = nn.Linear(mlp_width, WIDTH)
    return blocks


def sinusoids(count: int) -> Tensor:
    """``(count, D)``: pairs of sine and cosine, whose periods grow to 10,000."""
    rows = []
    for position in range(count):
        row = []
        for pair in range(WIDTH // 2):
            angle = position / 10_000 ** (2 * pair / WIDTH)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows)


class VideoMae(nn.Module):
    """VideoMAE and VideoMAEv2, fine-tuned: the norm follows the mean of all tokens."""

    def __init__(self, patch: int = PATCH, mlp_width: int = 4 * WIDTH) -> None:
        super().__init__()
        self.patch_embed = Embedding(patch)
        self.blocks = _blocks(AttentionWithoutKeyBias, mlp_width)
        self.fc_norm = LayerNorm()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, clips: Tensor) -> Tensor:
        x = self.patch_embed(clips)
        x = x + sinusoids(x.shape[1])
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(dim=1)))


class VideoMaeEncoder(nn.Module):
    """VideoMAE's encoder in pre-training: the norm comes before the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Embedding()
        self.blocks = _blocks(AttentionWithoutKeyBias)
        self.norm = LayerNorm()

    def forward(self, clips: Tensor) -> Tensor:
        x = self.patch_embed(clips)
        x = x + sinusoids(x.shape[1])
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(dim=1)


class VideoMaePretraining(nn.Module):
    """What the files of VideoMAE's pre-training hold; ``forward`` is that of the encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.empty(1, 1, 16))
        self.encoder = VideoMaeEncoder()
        self.decoder: Any = nn.Module()
        self.decoder.norm = nn.LayerNorm(16)
        self.decoder.head = nn.Linear(16, 384)
        self.decoder.blocks = nn.ModuleList([nn.Linear(16, 16)])
        self.encoder_to_decoder = nn.Linear(WIDTH, 16, bias=False)

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.encoder(clips)
        return features


class MaeSt(nn.Module):
    """MAE-ST: positions of times and of places, and a norm after the mean of the patches.

    Args:
        classes: 0 for the pre-trained model, with its decoder.
    """

    def __init__(self, times: int, places: int, classes: int = 0, separate: bool = True) -> None:
        super().__init__()
        self.patch_embed = Embedding()
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.separate = separate
        if separate:
            self.pos_embed_spatial = nn.Parameter(torch.empty(1, places, WIDTH))
            self.pos_embed_temporal = nn.Parameter(torch.empty(1, times, WIDTH))
            self.pos_embed_class = nn.Parameter(torch.empty(1, 1, WIDTH))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + times * places, WIDTH))
        self.blocks = _blocks(SeparateAttention)
        self.norm = LayerNorm()
        self.head = nn.Linear(WIDTH, classes) if classes else nn.Identity()
        if not classes:
            self.mask_token = nn.Parameter(torch.empty(1, 1, 16))
            self.decoder_cls_token = nn.Parameter(torch.empty(1, 1, 16))
            self.decoder_pos_embed_temporal = nn.Parameter(torch.empty(1, times, 16))
            self.decoder_embed = nn.Linear(WIDTH, 16)
            self.decoder_blocks = nn.ModuleList([nn.Linear(16, 16)])

    def forward(self, clips: Tensor) -> Tensor:
        patches = self.patch_embed(clips)
        if self.separate:
            times, places = self.pos_embed_temporal.shape[1], self.pos_embed_spatial.shape[1]
            for time in range(times):
                rows = slice(time * places, (time + 1) * places)
                patches[:, rows] += self.pos_embed_spatial + self.pos_embed_temporal[:, time]
            x = F.pad(patches, (0, 0, 1, 0))
            x[:, :1] = self.cls_token + self.pos_embed_class
        else:
            x = torch.cat([self.cls_token.expand(len(clips), -1, -1), patches], dim=1)
            x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 1:].mean(dim=1)))
