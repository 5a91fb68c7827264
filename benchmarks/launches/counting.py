"""A dispatch mode that counts operators on fake tensors (device, dtype and shape alone)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.launches.kernels import LINEAR, launches, read, total
from tome_core.ragged.plan import Plan

HALF = (torch.bfloat16, torch.float16)
ALIGNMENT = 8
WIDEST = 256  # of the heads that flash attention takes, in channels


@dataclass(frozen=True)
class Call:
    """One operator that ran on the GPU.

    Attributes:
        operator: its name, overloads alike, as ``aten::add``.
        launches: kernels.
        read, written: bytes of the tensors that it is given and that it gives, each of them once.
    """

    operator: str
    launches: int
    read: int
    written: int

    @property
    def linear(self) -> bool:
        """Whether it belongs to a linear layer."""
        return self.operator in LINEAR

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.read + self.written


@dataclass
class Counts:
    """What ran, in order."""

    calls: list[Call] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Kernels."""
        return sum(call.launches for call in self.calls)

    @property
    def linear_bytes(self) -> int:
        """Read and written in linear layers, weights included."""
        return sum(call.bytes for call in self.calls if call.linear)

    @property
    def other_bytes(self) -> int:
        """Read and written outside linear layers."""
        return sum(call.bytes for call in self.calls if not call.linear)

    def by_operator(self) -> dict[str, list[Call]]:
        """The calls of each operator, most bytes first."""
        groups: dict[str, list[Call]] = {}
        for call in self.calls:
            groups.setdefault(call.operator, []).append(call)
        return dict(sorted(groups.items(), key=lambda item: -sum(call.bytes for call in item[1])))


class Counter(TorchDispatchMode):
    """Counts GPU work while entered, inside ``FakeTensorMode`` and ``torch.inference_mode``.

    Attributes:
        counts: what runs in every pass.
        once: what made the index tensors of plans, which are kept as long as their plans are.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.counts = Counts()
        self.once = Counts()
        self._current = self.counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, and count it unless it consists of others, which are counted instead."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            with self:
                return attend(*args, **kwargs)
        if func is torch.ops.aten.dropout.default and not args[2]:
            return args[0]  # which PyTorch 2.11 would take apart to a copy that no GPU makes
        if (
            func.namespace != "prim"
        ):  # which only ask for a tensor's properties, and cannot be taken apart
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if not func.is_view:
            self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._schema.name
        known = func._schema.arguments
        arguments = [*zip(known, args, strict=False)]
        arguments += [
            (argument, kwargs[argument.name]) for argument in known if argument.name in kwargs
        ]
        # What is only a place for results is not read.
        given = [
            tensor
            for argument, value in arguments
            if not argument.is_out
            for tensor in tensors(value)
        ]
        changed = [
            tensor
            for argument, value in arguments
            if argument.is_write
            for tensor in tensors(value)
        ]
        new = [
            tensor
            for tensor in tensors(out)
            if not any(tensor is old for old in (*given, *changed))
        ]
        if not any(tensor.device.type == "cuda" for tensor in (*given, *changed, *new)):
            return
        kernels = launches(name, given)
        if kernels and (changed or new):  # an operator that gives no tensor asks for properties
            self._current.calls.append(
                Call(name, kernels, read(name, given), total((*changed, *new)))
            )

    @contextmanager
    def plans_kept(self) -> Iterator[None]:
        """Let plans cache their tensors as real ones do; making them is counted in ``once``."""
        kept: dict[Any, Any] = {}

        def cached(plan: Plan, name: str, like: Tensor, make: Any) -> Any:
            key = id(plan), name
            if key not in kept:
                before = self._current
                self._current = self.once
                try:
                    kept[key] = plan, make()
                finally:
                    self._current = before
            return kept[key][1]

        real = Plan.cached
        Plan.cached = cached  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Plan.cached = real  # type: ignore[method-assign]


def tensors(value: Any) -> list[Tensor]:
    """All tensors in an argument or a result, in order."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """PyTorch's attention by the kernel that a GPU would use: flash, or the one with a mask.

    On a machine without a GPU it would take the products one by one. cuDNN's attention, which a GPU
    may prefer to flash attention, is one kernel that reads and writes the same.
    """
    assert not enable_gqa, "no Vision Transformer has fewer keys than queries"
    width = q.shape[-1]
    aten = torch.ops.aten
    if attn_mask is None and q.dtype in HALF and width <= WIDEST:
        if width % ALIGNMENT:
            q, k, v = (F.pad(part, (0, -width % ALIGNMENT)) for part in (q, k, v))
            scale = width**-0.5 if scale is None else scale
        out = aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[
            0
        ]
        return out[..., :width]
    if attn_mask is not None:
        keys = k.shape[-2]
        # attention.cpp, pad_bias: rows of a mask begin at multiples of 16 bytes.
        if keys % ALIGNMENT:
            attn_mask = F.pad(attn_mask, (0, -keys % ALIGNMENT))[..., :keys]
        attn_mask = attn_mask.expand(*q.shape[:-1], keys)
    return aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]
