"""The patched model: a module that merges tokens as each call asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tome_core.block import Block, run_block
from tome_core.cost import Cost
from tome_core.dense import Format, as_format, check_format, pick_layers, unmerged
from tome_core.merge import accumulation_dtype
from tome_core.outputs import Outputs
from tome_core.pixels import Images, normalised
from tome_core.positional import Positional
from tome_core.ragged.packed import Merging, Packed
from tome_core.ragged.plan import BoundedPlan, Plan, make_plan, token_counts
from tome_core.schedule import Schedule
from tome_core.trace import Trace

R = SupportsIndex | Schedule | Sequence[SupportsIndex | Schedule] | BoundedPlan


class Adapter(Protocol):
    """One family of models, taken apart: what comes before, between and after the blocks."""

    network: nn.Module
    prefix: int
    cost: Cost

    @property
    def leading(self) -> int | None:
        """So many tokens at the front are all that `pool` reads; None where it may read any."""
        ...

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, in order."""
        ...

    def embed(self, images: Tensor) -> tuple[Tensor, Positional | None]:
        """Images ``(B, C, H, W)`` to the tokens ``(B, N0, D)`` of the first block, and what their attention reads."""
        ...

    def norm(self, tokens: Tensor) -> Tensor:
        """The final norm, token by token, on ``(T, D)``."""
        ...

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """Pool ``(B, N, D)``, weighted by ``sizes (B, N)`` where that matters."""
        ...

    def features(self, pooled: Tensor) -> Tensor:
        """What timm's ``forward_head(pre_logits=True)`` returns, from what `pool` gave."""
        ...

    def logits(self, pooled: Tensor) -> Tensor:
        """What timm's ``forward_head`` returns, from what `pool` gave."""
        ...


class Embedding(Protocol):
    """What comes before the blocks, for inference: made by `tome_core.optimize` where that is faster."""

    def takes(self, images: Images) -> bool:
        """Whether it would embed ``images``."""
        ...

    def __call__(self, images: Images) -> Tensor:
        """The tokens ``(B, N0, D)`` that `Adapter.embed` gives, of pixels once they are normalised."""
        ...


class Encoder(Protocol):
    """All blocks at once, for inference: made by `tome_core.optimize` where that is faster than one by one."""

    def takes(self, merging: Merging, packed: Packed) -> bool:
        """Whether it would do what ``merging`` says with ``packed``."""
        ...

    def __call__(self, merging: Merging, plan: Plan, packed: Packed, leading: int | None) -> Packed:
        """What `run_block` gives after the last block; ``packed.tokens`` are used up."""
        ...


class MergedViT(nn.Module):
    """A Vision Transformer whose calls say how much to merge. Made by `tome_core.patch`.

    It shares its weights with the model it was made from and has the same ``state_dict`` keys. A
    call leaves nothing on it, so threads may share one.

    ``r`` is, in every call, one number or `Schedule` for the batch, or a sequence of them, one an
    image. Counts are clamped in each block to what it can merge; r=0 is the original model. Where
    `takes_bounds`, calls that pool may be given a `BoundedPlan` of their batch size instead.

    ``images`` are, in every call, floats ``(B, C, H, W)``, normalised, or `Pixels`.
    """

    def __init__(self, adapter: Adapter, merging: Merging) -> None:
        super().__init__()
        network = adapter.network
        self.training = network.training
        # The very dictionaries of the network, so that whoever swaps a parameter here
        # (functional_call, load_state_dict with assign) swaps it for the network's own methods too.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, name, getattr(network, name))
        # nn.Module would register the network as a part of itself.
        object.__setattr__(self, "adapter", adapter)
        self.adapter: Adapter
        self.merging = merging
        self.embedding: Embedding | None = None
        self.encoder: Encoder | None = None

    def train(self, mode: bool = True) -> MergedViT:
        """As `nn.Module.train`; the adapter's network follows, whose own methods look at its flag."""
        super().train(mode)
        self.adapter.network.training = mode
        return self

    def forward(self, images: Images, r: R = 0) -> Tensor:
        """Logits ``(B, classes)`` of ``images (B, C, H, W)``, of any float dtype; pooled features where classes is 0.

        Raises:
            ValueError: a negative ``r``, a list of another length than the batch, a schedule longer
                than the model.
            TypeError: ``images`` are not floating point, or ``r`` is none of its types.
        """
        return self.adapter.logits(self._pooled(images, r))

    def embed(self, images: Images, r: R = 0) -> Tensor:
        """Pooled features ``(B, D)`` of the merged tokens. Raises as `forward` does."""
        return self.adapter.features(self._pooled(images, r))

    def trace(self, images: Images, r: R = 0) -> Trace:
        """Logits, together with what merging did to reach them. Raises as `forward` does."""
        plan, packed = self._encode(images, r, trace=True)
        logits = self.adapter.logits(self._pool(plan, packed))
        tokens = [view for _, view in plan.views(packed.tokens, -1)]
        sizes = [_or_ones(sizes, view) for sizes, view in zip(packed.sizes, tokens, strict=True)]
        return Trace(logits, plan.by_image(tokens), plan.by_image(sizes), _source(plan, packed))

    def outputs(self, images: Images, r: R = 0, *, source: bool = False) -> Outputs:
        """Logits, pooled features and, if asked for, sources, of one forward pass. Raises as `forward` does."""
        if source:
            plan, packed = self._encode(images, r, trace=True)
            pooled = self._pool(plan, packed)
            found = _source(plan, packed)
        else:
            pooled = self._pooled(images, r)
            found = None
        return Outputs(self.adapter.logits(pooled), self.adapter.features(pooled), found)

    def forward_features(self, images: Images, r: R = 0) -> Tensor | list[Tensor]:
        """The merged tokens after the final norm, as a `Trace` has them; timm's at r=0. Raises as `forward` does."""
        plan, packed = self._encode(images, r, trace=False)
        return plan.by_image([view for _, view in plan.views(packed.tokens, -1)])

    def intermediates(
        self,
        images: Images,
        r: R = 0,
        layers: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: Format = "NLC",
        return_prefix_tokens: bool = False,
    ) -> list[Any]:
        """Dense features after several blocks, unmerged: at r=0 those of timm's ``forward_intermediates``.

        Args:
            layers: blocks from 0, negative ones from the end; one number for the last so many; None
                for all. Features come in the order of the blocks, and what follows the last of them
                does not run.
            norm: apply the model's final norm to them.
            output_fmt: ``NLC`` for ``(B, patches, D)``, ``NCHW`` for maps ``(B, D, rows, columns)``
                of the patch grid.
            return_prefix_tokens: give pairs of that and the prefix tokens, ``(B, prefix, D)``.

        Raises:
            ValueError: there is no such block or format, or patches were dropped in training and
                fill no map; and as `forward` does.
        """
        wanted = pick_layers(len(self.adapter.blocks), layers)
        check_format(output_fmt)
        dense = unmerged(
            self._states(images, r, trace=True), wanted, self.adapter.norm if norm else None
        )
        grid = self.patch_grid(images)
        prefix = self.merging.prefix
        pairs = [(as_format(x[:, prefix:], grid, output_fmt), x[:, :prefix]) for x in dense]
        return pairs if return_prefix_tokens else [patches for patches, _ in pairs]

    def patch_grid(self, images: Images) -> tuple[int, int]:
        """Rows and columns of patches that an image of the size of ``images (B, C, H, W)`` has."""
        embedding: Any = self.adapter.network.patch_embed
        rows, columns = embedding.dynamic_feat_size(tuple(images.shape[-2:]))
        return rows, columns

    def cost(self) -> Cost:
        """What an image costs under any schedule, at the model's own input size."""
        return self.adapter.cost

    @property
    def takes_bounds(self) -> bool:
        """Whether ``r`` may be a `BoundedPlan`: nothing but an encoder that reads its starts needs to know images."""
        reads = getattr(self.encoder, "reads_starts", False)
        return (
            bool(reads)
            and self.merging.prune
            and self.adapter.leading is not None
            and not self.training
        )

    def input_tokens(self, images: Images) -> int:
        """How many tokens an image of the size of ``images (B, C, H, W)`` enters the first block with (N0)."""
        with torch.no_grad():
            return self._embed(images[:1])[0].shape[1]

    def token_counts(self, r: int | Schedule, tokens: int) -> tuple[int, ...]:
        """Tokens of an image at the input, and after each block."""
        matcher = self.merging.matcher
        prefix = self.merging.prefix
        return token_counts(Schedule.of(r), len(self.adapter.blocks), tokens, prefix, matcher)

    def schedules(self, r: R, batch: int) -> list[Schedule]:
        """``r`` as one schedule per image."""
        r = r.tolist() if hasattr(r, "tolist") else r  # arrays and tensors of either library
        if isinstance(r, Schedule | SupportsIndex):
            return [Schedule.of(r)] * batch
        if isinstance(r, str | bytes) or not isinstance(r, Sequence):
            raise TypeError(
                f"r must be a number, a Schedule or a list of them, got {type(r).__name__}"
            )
        if len(r) != batch:
            raise ValueError(f"r has {len(r)} entries for a batch of {batch} images")
        return [Schedule.of(item) for item in r]

    def _encode(
        self, images: Images, r: R, trace: bool, leading: int | None = None
    ) -> tuple[Plan, Packed]:
        """Run embedding, blocks and final norm; for ``leading`` see `run_block`."""
        states = self._states(images, r, trace, leading)
        plan, packed = next(states)
        if (
            self.encoder is not None
            and not self.training
            and self.encoder.takes(self.merging, packed)
        ):
            packed = self.encoder(self.merging, plan, packed, leading)
        else:
            for plan, packed in states:  # noqa: B007
                pass
        return plan, replace(packed, tokens=self.adapter.norm(packed.tokens))

    def _states(
        self, images: Images, r: R, trace: bool, leading: int | None = None
    ) -> Iterator[tuple[Plan, Packed]]:
        """The tokens that enter the first block, then those after each block."""
        if isinstance(images, Tensor) and not images.is_floating_point():
            raise TypeError(f"images must be floating point and normalised, got {images.dtype}")
        if not len(images):
            raise ValueError("the batch is empty")
        adapter = self.adapter
        merging = self.merging
        bounds = r if isinstance(r, BoundedPlan) else None
        schedules = [] if isinstance(r, BoundedPlan) else self.schedules(r, len(images))
        x, positional = self._embed(images)
        tokens = x.shape[1]
        depth = len(adapter.blocks)
        plan = bounds or make_plan(schedules, depth, tokens, merging.prefix, merging.matcher)
        places: tuple[Tensor, ...] = ()
        if trace or positional is not None:
            place = torch.arange(tokens, device=x.device)
            places = tuple(place.repeat(group.images, 1) for group in plan.groups)
        packed = Packed(
            tokens=plan.arrange(x).flatten(0, 1),
            sizes=(None,) * len(plan.groups),
            sources=places if trace else None,
            positions=places if positional is not None else None,
        )
        del x  # a generator keeps its variables, and blocks need the memory
        yield plan, packed
        save_memory = (
            getattr(adapter.network, "grad_checkpointing", False) and torch.is_grad_enabled()
        )
        for index, block in enumerate(adapter.blocks):
            given = (
                block,
                merging,
                plan,
                index,
                packed,
                positional,
                leading if index == depth - 1 else None,
            )
            packed = (
                checkpoint(run_block, *given, use_reentrant=False)
                if save_memory
                else run_block(*given)
            )
            yield plan, packed

    def _embed(self, images: Images) -> tuple[Tensor, Positional | None]:
        if self.embedding is not None and not self.training and self.embedding.takes(images):
            return self.embedding(images), None
        return self.adapter.embed(normalised(images).to(next(self.parameters()).dtype))

    def _pooled(self, images: Images, r: R) -> Tensor:
        """What `pool` gives for ``images``, where nothing else is wanted of their tokens."""
        prune = self.merging.prune and not self.training and len(self.adapter.blocks) > 0
        leading = self.adapter.leading if prune else None
        plan, packed = self._encode(images, r, trace=False, leading=leading)
        if leading is None:
            return self._pool(plan, packed)
        return plan.restore(
            self.adapter.pool(packed.tokens.unflatten(0, (len(images), leading)), None)
        )

    def _pool(self, plan: Plan, packed: Packed) -> Tensor:
        views = plan.views(packed.tokens, -1)
        pooled = [
            self.adapter.pool(x, sizes) for (_, x), sizes in zip(views, packed.sizes, strict=True)
        ]
        return plan.restore(torch.cat(pooled))


def _source(plan: Plan, packed: Packed) -> Tensor:
    assert packed.sources is not None
    return plan.restore(torch.cat(packed.sources))


def _or_ones(sizes: Tensor | None, tokens: Tensor) -> Tensor:
    if sizes is not None:
        return sizes
    return torch.ones(
        tokens.shape[:2], dtype=accumulation_dtype(tokens.dtype), device=tokens.device
    )
