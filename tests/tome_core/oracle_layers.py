"""The layers of timm's Vision Transformers, written out in loops over single tokens, in float64.
See `oracle`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.layers import DiffAttention, GluMlp, LayerScale, Mlp, RmsNorm, SwiGLU
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from timm.models.vision_transformer_relpos import ResPostRelPosBlock
from torch import nn

Vector = npt.NDArray[np.float64]
# For each head, what each pair of query and key adds to its logit.
Bias = Sequence[Sequence[Sequence[float]]]
# For each token, what rotates a query or a key of one head.
Rotations = Sequence[Callable[[Vector], Vector]]
NOTHING = nn.Identity()


def add(vectors: Iterable[Vector]) -> Vector:
    """Their sum; at least one."""
    return reduce(np.add, vectors)


def attend(
    q: Sequence[Vector],
    k: Sequence[Vector],
    v: Sequence[Vector],
    sizes: Sequence[float],
    bias: Sequence[Sequence[float]] | None = None,
) -> list[Vector]:
    """One head of attention in which a key of size s counts s times, and pairs may have a bias."""
    out = []
    for at, query in enumerate(q):
        scores = [
            float(query @ key) / math.sqrt(len(query)) + math.log(size)
            for key, size in zip(k, sizes, strict=True)
        ]
        if bias is not None:
            scores = [score + extra for score, extra in zip(scores, bias[at], strict=True)]
        top = max(scores)
        weights = [math.exp(score - top) for score in scores]
        total = sum(weights)
        mixed = np.zeros_like(v[0])
        for weight, value in zip(weights, v, strict=True):
            mixed = mixed + weight / total * value
        out.append(mixed)
    return out


def array(tensor: torch.Tensor) -> Vector:
    return tensor.detach().double().numpy()


def linear(layer: Any, x: Vector) -> Vector:
    if isinstance(layer, nn.Identity):
        return x
    out = array(layer.weight) @ x
    return out if layer.bias is None else out + array(layer.bias)


def norm(layer: Any, x: Vector) -> Vector:
    if isinstance(layer, nn.Identity):
        return x
    if isinstance(layer, RmsNorm):
        return x / math.sqrt(sum(x * x) / len(x) + layer.eps) * array(layer.weight)
    assert isinstance(layer, nn.LayerNorm)
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return (x - mean) / math.sqrt(variance + layer.eps) * array(layer.weight) + array(layer.bias)


def scale(layer: Any, x: Vector) -> Vector:
    return x * array(layer.gamma) if isinstance(layer, LayerScale) else x


def sigmoid(x: Vector) -> Vector:
    return np.array([1 / (1 + math.exp(-value)) for value in x])


def activation(layer: nn.Module, x: Vector) -> Vector:
    if isinstance(layer, nn.SiLU):
        return x * sigmoid(x)
    assert isinstance(layer, nn.GELU)
    return np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


def mlp(layer: Any, x: Vector) -> Vector:
    if isinstance(layer, SwiGLU):
        hidden = activation(layer.act, linear(layer.fc1_g, x)) * linear(layer.fc1_x, x)
    elif isinstance(layer, GluMlp):
        assert not layer.gate_last
        both = linear(layer.fc1, x)
        hidden = activation(layer.act, both[: len(both) // 2]) * both[len(both) // 2 :]
    else:
        assert type(layer) is Mlp
        hidden = activation(layer.act, linear(layer.fc1, x))
    return linear(layer.fc2, norm(layer.norm, hidden))


def in_projection(attn: Any, x: Vector) -> Vector:
    """Query, key and value of a token, ``(3, D)``; Beit has separate biases for q and v."""
    out = linear(attn.qkv, x).reshape(3, -1)
    if getattr(attn, "q_bias", None) is not None:
        out = out + np.stack([array(attn.q_bias), np.zeros_like(out[1]), array(attn.v_bias)])
    return out


def difference(attn: Any, first: Vector, second: Vector) -> Vector:
    """A head of differential attention (arXiv 2410.05258, equations 1 to 3)."""
    exact = math.exp(array(attn.lambda_q1) @ array(attn.lambda_k1)) - math.exp(
        array(attn.lambda_q2) @ array(attn.lambda_k2)
    )
    # timm takes these exponentials in float32, whatever the precision of the model.
    weight = attn._compute_lambda().item()
    assert math.isclose(weight, exact + attn.lambda_init, rel_tol=1e-5, abs_tol=1e-5)
    return norm(attn.sub_norm, first - weight * second) * (1 - attn.lambda_init)


def self_attention(
    attn: Any,
    inputs: Sequence[Vector],
    sizes: Sequence[float],
    bias: Bias | None,
    rotations: Rotations | None = None,
) -> tuple[list[Vector], list[list[Vector]]]:
    """What attention gives each token, and for each of its heads the keys of all tokens."""
    heads = attn.num_heads
    differential = isinstance(attn, DiffAttention)
    maps = 2 * heads if differential else heads
    projected = [in_projection(attn, x) for x in inputs]
    q_norm = getattr(attn, "q_norm", NOTHING)
    k_norm = getattr(attn, "k_norm", NOTHING)
    keys = []
    mixed = []
    for at in range(maps):
        q = [norm(q_norm, np.split(p[0], maps)[at]) for p in projected]
        k = [norm(k_norm, np.split(p[1], maps)[at]) for p in projected]
        v = [np.split(p[2], heads)[at * heads // maps] for p in projected]
        if rotations is not None:
            q = [rotate(query) for rotate, query in zip(rotations, q, strict=True)]
            k = [rotate(key) for rotate, key in zip(rotations, k, strict=True)]
        mixed.append(attend(q, k, v, sizes, None if bias is None else bias[at]))
        keys.append(k)
    outputs = []
    for token, x in enumerate(inputs):
        parts = [mixed[at][token] for at in range(maps)]
        if differential:
            parts = [
                difference(attn, parts[2 * head], parts[2 * head + 1]) for head in range(heads)
            ]
        out = norm(getattr(attn, "norm", NOTHING), np.concatenate(parts))
        if getattr(attn, "gate", None) is not None:
            out = out * sigmoid(linear(attn.gate, x))
        outputs.append(linear(attn.proj, out))
    return outputs, keys


def scaled(block: Any, which: int, x: Vector) -> Vector:
    """LayerScale of the first or second branch, under either of timm's names for it."""
    gamma = getattr(block, f"gamma_{which}", None)
    return scale(getattr(block, f"ls{which}", None), x) if gamma is None else x * array(gamma)


def attention_branch(
    block: Any,
    values: Sequence[Vector],
    sizes: Sequence[float],
    bias: Bias | None = None,
    rotations: Rotations | None = None,
) -> tuple[list[Vector], list[list[Vector]]]:
    """The attention branch for each token, and each token's keys of all heads."""
    if isinstance(block, ParallelThingsBlock):
        each = [
            self_attention(one.attn, [norm(one.norm, x) for x in values], sizes, bias)
            for one in block.attns
        ]
        branch = [
            add(scale(one.ls, out[token]) for one, (out, _) in zip(block.attns, each, strict=True))
            for token in range(len(values))
        ]
        keys = [head for _, heads in each for head in heads]
    elif isinstance(block, ResPostBlock | ResPostRelPosBlock):
        outputs, keys = self_attention(block.attn, values, sizes, bias)
        branch = [norm(block.norm1, out) for out in outputs]
    else:
        outputs, keys = self_attention(
            block.attn, [norm(block.norm1, x) for x in values], sizes, bias, rotations
        )
        branch = [scaled(block, 1, out) for out in outputs]
    return branch, [[head[token] for head in keys] for token in range(len(values))]


def mlp_branch(block: Any, x: Vector) -> Vector:
    """The MLP branch of one token."""
    if isinstance(block, ParallelThingsBlock):
        return add(scale(one.ls, mlp(one.mlp, norm(one.norm, x))) for one in block.ffns)
    if isinstance(block, ResPostBlock | ResPostRelPosBlock):
        return norm(block.norm2, mlp(block.mlp, x))
    return scaled(block, 2, mlp(block.mlp, norm(block.norm2, x)))


def latent_attention(module: Any, values: Sequence[Vector], sizes: Sequence[float]) -> Vector:
    """What the one latent of timm's attention pool attends to; a token of size s counts s times."""
    heads = module.num_heads
    query = linear(module.q, array(module.latent)[0, 0])
    pairs = [linear(module.kv, value).reshape(2, -1) for value in values]
    mixed = []
    for head in range(heads):
        q = norm(module.q_norm, np.split(query, heads)[head])
        k = [norm(module.k_norm, np.split(pair[0], heads)[head]) for pair in pairs]
        mixed += attend([q], k, [np.split(pair[1], heads)[head] for pair in pairs], sizes)
    return linear(module.proj, np.concatenate(mixed))


def attention_pool(module: Any, values: Sequence[Vector], sizes: Sequence[float]) -> Vector:
    """timm's attention pool."""
    out = latent_attention(module, values, sizes)
    return out + mlp(module.mlp, norm(module.norm, out))


def attentive_pooler(module: Any, values: Sequence[Vector], sizes: Sequence[float]) -> Vector:
    """V-JEPA 2's pooler: blocks of self-attention, then one query, without a projection."""
    for block in module.blocks:
        branch, _ = attention_branch(block, values, sizes)
        attended = [value + out for value, out in zip(values, branch, strict=True)]
        values = [value + mlp_branch(block, value) for value in attended]
    normed = [norm(module.norm1, value) for value in values]
    out = array(module.cross_attn.latent)[0, 0] + latent_attention(module.cross_attn, normed, sizes)
    return out + mlp(module.mlp, norm(module.norm2, out))
