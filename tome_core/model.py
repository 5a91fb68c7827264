"""The patched model: a module that merges tokens as each call requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, SupportsIndex

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tome_core.block import Block, Encoder, run_block
from tome_core.cost import Cost
from tome_core.dense import (
    Format,
    Unmerging,
    check_choices,
    dense_features,
    resolve_layers,
    to_format,
)
from tome_core.execution import Execution
from tome_core.merging import Merging
from tome_core.metric import all_keys
from tome_core.outputs import Outputs
from tome_core.pairs import Pairs
from tome_core.pixels import Images, check_images, normalised
from tome_core.positional import Positional
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import BoundedPlan, Plan, make_plan, token_counts
from tome_core.schedule import Schedule
from tome_core.trace import Trace, batch_source, make_trace

# One r for the batch, one for each image, or a plan that keeps all lengths on the device.
R = SupportsIndex | Schedule | Sequence[SupportsIndex | Schedule] | BoundedPlan


class Adapter(Protocol):
    """One family of models: what runs before, between and after the blocks."""

    network: nn.Module
    prefix: int
    cost: Cost

    @property
    def leading(self) -> int | None:
        """The number of tokens at the front that `pool` reads; None if it may read any token."""
        ...

    @property
    def blocks(self) -> Sequence[Block]:
        """The blocks, in order."""
        ...

    def embed(self, images: Tensor) -> tuple[Tensor, Positional | None]:
        """Embed images ``(B, C, H, W)``.

        Returns:
            The tokens ``(B, N0, D)`` of the first block, and the positions that attention reads.
        """
        ...

    def norm(self, tokens: Tensor) -> Tensor:
        """Apply the final norm, token by token, to ``(T, D)``."""
        ...

    def pool(self, tokens: Tensor, sizes: Tensor | None) -> Tensor:
        """Pool ``(B, N, D)``, weighted by ``sizes (B, N)`` where that matters."""
        ...

    def features(self, pooled: Tensor) -> Tensor:
        """Return what timm's ``forward_head(pre_logits=True)`` does, from the result of `pool`."""
        ...

    def logits(self, pooled: Tensor) -> Tensor:
        """Return what timm's ``forward_head`` does, from the result of `pool`."""
        ...


class Embedding(Protocol):
    """A faster embedding for inference, made by `tome_core.optimize`."""

    def supports(self, images: Images) -> bool:
        """Return whether it supports ``images``."""
        ...

    def __call__(self, images: Images) -> Tensor:
        """Return the tokens ``(B, N0, D)`` that `Adapter.embed` gives for the normalised images."""
        ...


class MergedViT(nn.Module):
    """A Vision Transformer that merges tokens as each call requests. Made by `tome_core.patch`.

    It shares its weights with the original model and has the same ``state_dict`` keys. A call
    stores nothing on the model, so several threads may use it at once.

    In every call, ``r`` is one number or `Schedule` for the batch, or a sequence with one entry per
    image. Counts are clamped in each block to what it can merge; r=0 is the original model. Where
    `takes_bounds`, calls that return pooled results also accept a `BoundedPlan` of the batch size.

    In every call, ``images`` are normalised floats ``(B, C, H, W)``, or `Pixels`.
    """

    def __init__(
        self,
        adapter: Adapter,
        merging: Merging,
        execution: Execution,
    ) -> None:
        super().__init__()
        network = adapter.network
        self.training = network.training
        # Share the dictionaries of the network themselves. Code that replaces a parameter here
        # (functional_call, load_state_dict with assign) then also replaces it for the network.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            object.__setattr__(self, name, getattr(network, name))
        self.adapter = adapter
        self.merging = merging
        self.execution = execution
        self.embedding: Embedding | None = None
        self.encoder: Encoder | None = None

    def train(self, mode: bool = True) -> MergedViT:
        """Set the mode as `nn.Module.train` does, and that of the adapter's network with it."""
        super().train(mode)
        # The network's own methods read its flag.
        self.adapter.network.training = mode
        return self

    def forward(self, images: Images, r: R = 0) -> Tensor:
        """Return logits ``(B, classes)``, or pooled features ``(B, D)`` if there are no classes.

        Args:
            images: ``(B, C, H, W)``, of any float dtype, or `Pixels`.
            r: see `MergedViT`.

        Raises:
            ValueError: ``r`` is negative, has another length than the batch, or is a schedule that
                is longer than the model; or the batch is empty.
            TypeError: ``images`` are not floating point, or ``r`` is of another type.
        """
        pooled = self._pooled(images, r)
        return self.adapter.logits(pooled)

    def embed(self, images: Images, r: R = 0) -> Tensor:
        """Return pooled features ``(B, D)`` of the merged tokens. Raises as `forward` does."""
        pooled = self._pooled(images, r)
        return self.adapter.features(pooled)

    def trace(self, images: Images, r: R = 0, *, residual: bool = False) -> Trace:
        """Return logits and a record of what was merged. Raises as `forward` does.

        Args:
            images, r: see `MergedViT`.
            residual: unmerge with residuals, into ``Trace.unmerged``; see `tome_core.residuals`.
        """
        context = self._run_blocks(images, r, trace=True, residual=residual)
        unmerged = dense_features(context, self.adapter.norm) if residual else None
        context = self._apply_norm(context)
        logits = self.adapter.logits(self._pool(context))
        return make_trace(context, logits, unmerged)

    def outputs(self, images: Images, r: R = 0, *, source: bool = False) -> Outputs:
        """Return several results of one forward pass. Raises as `forward` does.

        Args:
            images, r: see `MergedViT`.
            source: also return where each input token ended.
        """
        source_map = None
        if source:
            context = self._encode(images, r, trace=True)
            pooled = self._pool(context)
            source_map = batch_source(context)
        else:
            pooled = self._pooled(images, r)
        logits = self.adapter.logits(pooled)
        features = self.adapter.features(pooled)
        return Outputs(logits, features, source_map)

    def forward_features(self, images: Images, r: R = 0) -> Tensor | list[Tensor]:
        """Return the merged tokens after the final norm; timm's at r=0. Raises as `forward` does.

        They have the form of ``Trace.tokens``.
        """
        context = self._encode(images, r, trace=False)
        views = context.views(context.packed.tokens)
        return context.plan.by_image([view for _, view in views])

    def intermediates(
        self,
        images: Images,
        r: R = 0,
        layers: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        output_fmt: Format = "NLC",
        return_prefix_tokens: bool = False,
        unmerge: Unmerging = "copy",
    ) -> list[Any]:
        """Return unmerged dense features of several blocks; timm's intermediates at r=0.

        The features come in the order of the blocks. No block after the last of ``layers`` runs.

        Args:
            images, r: see `MergedViT`.
            layers: block indices, where negative ones count from the end; or one number for the
                last so many blocks; or None for all blocks.
            norm: apply the model's final norm to the features.
            output_fmt: ``NLC`` for ``(B, patches, D)``, ``NCHW`` for maps ``(B, D, rows, columns)``
                of the patch grid.
            return_prefix_tokens: return pairs of the features and the prefix tokens
                ``(B, prefix, D)``.
            unmerge: ``copy`` gives every input token the features of the token that contains it;
                ``residual`` adds what merging took from it, see `tome_core.residuals`.

        Raises:
            ValueError: there is no such block, format or way to unmerge, or patch dropout leaves
                too few patches for a map; and as `forward` does.
        """
        indices = resolve_layers(len(self.adapter.blocks), layers)
        check_choices(output_fmt, unmerge)
        context = self._first_context(images, r, trace=True, residual=unmerge == "residual")
        grid = self.patch_grid(images)
        prefix = self.merging.prefix
        features: list[Any] = []
        for index in range(indices[-1] + 1):
            context = self._run_block(context)
            if index not in indices:
                continue
            x = dense_features(context, self.adapter.norm if norm else None)  # (B, N0, D)
            patches = to_format(x[:, prefix:], grid, output_fmt)
            if return_prefix_tokens:
                features.append((patches, x[:, :prefix]))
            else:
                features.append(patches)
        return features

    def patch_grid(self, images: Images) -> tuple[int, int]:
        """Return the rows and columns of patches of one image of the size of ``images``."""
        embedding: Any = self.adapter.network.patch_embed
        height_and_width = tuple(images.shape[-2:])
        rows, columns = embedding.dynamic_feat_size(height_and_width)
        return rows, columns

    def cost(self) -> Cost:
        """Return the MAC count, by token counts, of an image of the model's own input size."""
        return replace(
            self.adapter.cost,
            all_pairs=isinstance(self.merging.matcher, Pairs),
            all_heads=self.merging.metric is all_keys,
        )

    @property
    def takes_bounds(self) -> bool:
        """Whether ``r`` may be a `BoundedPlan`.

        Only an encoder that reads where images start from the device can run such a plan, so every
        call must use the encoder and read nothing but the leading tokens.
        """
        reads_starts = self.encoder is not None and self.encoder.reads_starts
        pools_leading_tokens = self.execution.prune and self.adapter.leading is not None
        return (
            reads_starts
            and pools_leading_tokens
            and self.merging.rule is not None
            and not self.training
        )

    def input_tokens(self, images: Images) -> int:
        """Return the number of tokens (N0) of one image before the first block."""
        with torch.no_grad():
            x, _ = self._embed(images[:1])  # (1, N0, D)
        return x.shape[1]

    def token_counts(self, r: int | Schedule, tokens: int) -> tuple[int, ...]:
        """Return the tokens of one image at the input and after each block."""
        schedule = Schedule.of(r)
        depth = len(self.adapter.blocks)
        merging = self.merging
        return token_counts(schedule, depth, tokens, merging.prefix, merging.matcher)

    def schedules(self, r: R, batch: int) -> list[Schedule]:
        """Return ``r`` as one schedule per image. Raises as `forward` does."""
        if hasattr(r, "tolist"):  # an array of numpy or a tensor of torch
            r = r.tolist()
        if isinstance(r, Schedule | SupportsIndex):
            return [Schedule.of(r)] * batch
        if isinstance(r, str | bytes) or not isinstance(r, Sequence):
            type_name = type(r).__name__
            raise TypeError(f"r must be a number, a Schedule or a list of them, got {type_name}")
        if len(r) != batch:
            raise ValueError(f"r has {len(r)} entries for a batch of {batch} images")
        return [Schedule.of(entry) for entry in r]

    def _encode(
        self,
        images: Images,
        r: R,
        trace: bool,
        leading: int | None = None,
    ) -> BlockContext:
        """Run the embedding, the blocks and the final norm; for ``leading`` see `run_block`."""
        context = self._run_blocks(images, r, trace, leading)
        return self._apply_norm(context)

    def _run_blocks(
        self,
        images: Images,
        r: R,
        trace: bool,
        leading: int | None = None,
        residual: bool = False,
    ) -> BlockContext:
        """Run the embedding and the blocks; return the context after the last one."""
        context = self._first_context(images, r, trace, residual)
        depth = len(self.adapter.blocks)
        encoder = None if self.training else self.encoder
        if encoder is not None and encoder.supports(context):
            return replace(context, index=depth, packed=encoder(context, leading))
        for index in range(depth):
            is_last = index == depth - 1
            context = self._run_block(context, leading if is_last else None)
        return context

    def _apply_norm(self, context: BlockContext) -> BlockContext:
        normed = self.adapter.norm(context.packed.tokens)  # (T, D)
        return context.with_tokens(normed)

    def _run_block(self, context: BlockContext, leading: int | None = None) -> BlockContext:
        """Run the block of ``context`` as `run_block` does; return the context of the next one."""
        block = self.adapter.blocks[context.index]
        arguments = (block, self.execution, context, leading)
        checkpointing = getattr(self.adapter.network, "grad_checkpointing", False)
        if checkpointing and torch.is_grad_enabled():
            packed = checkpoint(run_block, *arguments, use_reentrant=False)
        else:
            packed = run_block(*arguments)
        return context.following(packed)

    def _first_context(self, images: Images, r: R, trace: bool, residual: bool) -> BlockContext:
        """Embed the images, sort their tokens as the plan does, and return the first context."""
        check_images(images)
        plan: Plan
        if isinstance(r, BoundedPlan):
            x, positional = self._embed(images)  # (B, N0, D)
            plan = r
        else:
            schedules = self.schedules(r, len(images))  # refuses r before the images are embedded
            x, positional = self._embed(images)  # (B, N0, D)
            plan = make_plan(
                schedules,
                depth=len(self.adapter.blocks),
                tokens=x.shape[1],
                prefix=self.merging.prefix,
                matcher=self.merging.matcher,
            )
        input_positions: tuple[Tensor, ...] = ()
        if trace or positional is not None:
            one_image = torch.arange(x.shape[1], device=x.device)  # (N0,)
            input_positions = tuple(one_image.repeat(group.images, 1) for group in plan.groups)
        packed = Packed(
            tokens=plan.arrange(x).flatten(0, 1),  # (T, D)
            sizes=(None,) * len(plan.groups),
            sources=input_positions if trace else None,
            positions=input_positions if positional is not None else None,
            residuals=(None,) * len(plan.groups) if residual and plan.merges_anywhere else None,
        )
        return BlockContext(self.merging, plan, 0, packed, positional)

    def _embed(self, images: Images) -> tuple[Tensor, Positional | None]:
        embedding = None if self.training else self.embedding
        if embedding is not None and embedding.supports(images):
            return embedding(images), None
        dtype = next(self.parameters()).dtype
        return self.adapter.embed(normalised(images).to(dtype))

    def _pooled(self, images: Images, r: R) -> Tensor:
        """Return the result of `Adapter.pool`, for callers that need nothing else."""
        prune = self.execution.prune and not self.training and len(self.adapter.blocks) > 0
        leading = self.adapter.leading if prune else None
        context = self._encode(images, r, trace=False, leading=leading)
        if leading is None:
            return self._pool(context)
        # ``packed.sizes`` are not those of the leading tokens (`run_block`); no pool needs them.
        tokens = context.packed.tokens.unflatten(0, (len(images), leading))  # (B, leading, D)
        pooled = self.adapter.pool(tokens, None)
        return context.plan.restore(pooled)

    def _pool(self, context: BlockContext) -> Tensor:
        packed = context.packed
        pooled = []
        for (_, tokens), sizes in zip(context.views(packed.tokens), packed.sizes, strict=True):
            pooled.append(self.adapter.pool(tokens, sizes))
        return context.plan.restore(torch.cat(pooled))
