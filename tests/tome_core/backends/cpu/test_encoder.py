"""Which calls the encoder of the CPU kernels takes; no kernel runs, so every processor does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tome_core import Bipartite, Kth, Schedule
from tome_core.backends.cpu.encoder import BlockLayers, KernelEncoder
from tome_core.backends.cpu.layers import KernelLayerNorm
from tome_core.backends.cpu.linears import KernelLinear
from tome_core.merging import Merging
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import make_plan
from tome_core.rules import RULE_NAMES

DIM = 32


def make_encoder() -> KernelEncoder:
    block = BlockLayers(
        norm1=KernelLayerNorm(nn.LayerNorm(DIM)),
        qkv=KernelLinear(nn.Linear(DIM, 3 * DIM)),
        proj=KernelLinear(nn.Linear(DIM, DIM)),
        norm2=KernelLayerNorm(nn.LayerNorm(DIM)),
        fc1=KernelLinear(nn.Linear(DIM, 2 * DIM), gelu=True),
        fc2=KernelLinear(nn.Linear(2 * DIM, DIM)),
        heads=2,
    )
    return KernelEncoder([block])


def test_which_calls_it_takes() -> None:
    encoder = make_encoder()
    merging = Merging(Bipartite(), prop_attn=True, prefix=1)
    plan = make_plan([Schedule.of(2)], 1, 8, 1, Bipartite())
    places = (torch.arange(8)[None],)
    packed = Packed(torch.zeros(8, DIM), (None,), None)
    context = BlockContext(merging, plan, 0, packed)
    assert encoder.supports(context)
    assert encoder.supports(replace(context, packed=replace(packed, sources=places)))
    for name in RULE_NAMES:
        assert encoder.supports(replace(context, merging=merging.with_rule(name)))

    for other in (
        replace(packed, positions=places),
        replace(packed, sources=places, residuals=(None,)),
        replace(packed, tokens=packed.tokens.double()),
    ):
        assert not encoder.supports(replace(context, packed=other))
    assert not encoder.supports(replace(context, merging=replace(merging, matcher=Kth(2))))
