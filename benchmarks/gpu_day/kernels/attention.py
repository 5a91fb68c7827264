"""Attention with the shapes of ViT-B/16, in bfloat16, with sizes of merged tokens and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_day.kernels.workload import DTYPE, Workload, worst
from tome_core.backends.cuda.attention import Tiles, choose_tiles, launch_attention, unpack
from tome_core.backends.padded import padded_attention
from tome_core.ragged.padding import make_padded_layouts

MIXED = (197, 181, 149, 133, 101, 69, 37, 21)
WIDTH = 64


@dataclass(frozen=True)
class Batch:
    """Lengths of images, and how many heads there are."""

    name: str
    counts: tuple[int, ...]
    heads: int

    @property
    def tokens(self) -> int:
        """Of all images."""
        return sum(self.counts)

    @property
    def is_dense(self) -> bool:
        """Whether all images have as many tokens."""
        return len(set(self.counts)) == 1


def workloads(device: str, dry: bool) -> Iterator[Workload]:
    """All that there are, one by one."""
    if dry:
        yield attention_of(Batch("1 x 20", (20,), 1), device, True)
        yield attention_of(Batch("mixed", (20, 3), 1), device, False)
        return
    for images, count in ((256, 197), (256, 133), (32, 197), (1, 197)):
        for has_sizes in (True, False):
            if has_sizes or count == 197:
                yield attention_of(
                    Batch(f"{images} x {count}", (count,) * images, 12), device, has_sizes
                )
    yield attention_of(Batch("256 mixed", tuple(islice(cycle(MIXED), 256)), 12), device, True)


def attention_of(batch: Batch, device: str, has_sizes: bool) -> Workload:
    """Attention of a batch, beside flash attention, which knows no sizes, and beside a mask."""
    generator = torch.Generator(device).manual_seed(0)
    width = batch.heads * WIDTH
    qkv = torch.randn(batch.tokens, 3 * width, device=device, generator=generator).to(DTYPE)
    sizes = (
        torch.randint(1, 9, (batch.tokens,), device=device, generator=generator).float()
        if has_sizes
        else None
    )
    starts = torch.tensor([0, *batch.counts], device=device).cumsum(0).int()
    launch = partial(launch_attention, *unpack(qkv, batch.heads), sizes, starts, max(batch.counts))
    expected = exact_attention(qkv, sizes, batch)
    chosen = choose_tiles(WIDTH, DTYPE, has_sizes)
    others = replace(chosen, rest=16), replace(chosen, keys=32, rest=32)
    return Workload(
        kernel="attention with sizes" if has_sizes else "attention",
        shape=batch.name,
        bytes=qkv.nbytes * 4 // 3 + (0 if sizes is None else sizes.nbytes),
        flops=4 * sum(count**2 for count in batch.counts) * width,
        deviation=lambda found: worst(found, expected),
        variants={
            "served": launch,
            **{name_of(tiles): partial(launch, tiles) for tiles in others if tiles != chosen},
        },
        peers=peers_of(qkv, sizes, starts, batch),
    )


def name_of(tiles: Tiles) -> str:
    """Short."""
    return f"{tiles.queries}x{tiles.keys}+{tiles.rest} w{tiles.warps} s{tiles.stages}"


def peers_of(
    qkv: Tensor, sizes: Tensor | None, starts: Tensor, batch: Batch
) -> dict[str, Callable[[], Any]]:
    """PyTorch's ways to the same."""
    longest = max(batch.counts)
    q, k, v = qkv.unflatten(1, (3, batch.heads, WIDTH)).unbind(1)
    if not batch.is_dense:
        (places,) = make_padded_layouts(starts.long()[None], [batch.counts])
        return {"padded operators": partial(padded_attention, q, k, v, sizes, places, None)}
    dense = [part.unflatten(0, (-1, longest)).transpose(1, 2) for part in (q, k, v)]
    if sizes is None:
        backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
        return {name: partial(with_backend, backend, *dense) for name, backend in backends.items()}
    mask = sizes.view(-1, longest).log()[:, None, None].to(DTYPE)
    return {"masked": partial(F.scaled_dot_product_attention, *dense, mask)}


def exact_attention(qkv: Tensor, sizes: Tensor | None, batch: Batch) -> Tensor:
    """By its definition, image by image, in float64."""
    parts = []
    of_images = [None] * len(batch.counts) if sizes is None else sizes.split(batch.counts)
    for rows, size in zip(qkv.split(batch.counts), of_images, strict=True):
        q, k, v = rows.double().unflatten(1, (3, batch.heads, WIDTH)).permute(1, 2, 0, 3)
        logits = q @ k.mT / WIDTH**0.5
        if size is not None:
            logits += size.double().log()
        parts.append((logits.softmax(dim=-1) @ v).transpose(0, 1).flatten(1).float())
    return torch.cat(parts)


def with_backend(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's attention by one of its kernels."""
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v)
