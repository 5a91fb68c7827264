"""The cost model: how many seconds a batch takes. Pure arithmetic, shared by API and engine.

The model is linear. A batch has `CostFeatures`, such as its number of tokens, and every
feature has a coefficient, in seconds per unit. The features belong to two sides:

    host_seconds   = sum of feature * coefficient over host, host_merging_blocks, groups
    device_seconds = sum of feature * coefficient over all other features

On a CPU, and on a GPU without CUDA graphs, the two sides add up:

    seconds = contention * (host_seconds + device_seconds) + delay

Where CUDA graphs are recorded, the host launches kernels while the device computes, so that the
slower side determines the time:

    seconds = contention * max(host_seconds, device_seconds) + delay

`CostModel.contention` and `CostModel.delay` account for other work on the machine. Coefficients are
never negative. The features are exact: they follow from the schedules of the images and from the
recorded CUDA graphs. `docs/scheduling.md` reports how accurate the predictions are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import mul
from typing import NamedTuple

from tome_core.cost import Cost
from tome_core.schedule import Schedule

# Units of `ImageCost`, which bring all its quantities to a similar order of magnitude.
_TOKENS = 1e3
_MACS = 1e9
_PAIRS = 1e6
_HOST_END = 3  # fields of `CostFeatures` that belong to the host


class ImageCost(NamedTuple):
    """The computation of one image under one schedule, with N_l tokens at the input of block l.

    Blocks of the pool, which merge nothing, count as blocks.

    Attributes:
        tokens: sum of N_l over all blocks, in thousands.
        linear: multiply-accumulate operations (MACs) of all linear layers, in 1e9.
        pairs: pairs of tokens in attention, the sum of N_l^2 over all blocks, in millions.
        tokens_in_merging_blocks: sum of N_l over the blocks that merge, in thousands; matching and
            merging read and write these tokens.
        merging_blocks: number of blocks that merge. For a batch, that of the image with the most.
        relative_flops: FLOPs as a fraction of those at r=0.
    """

    tokens: float
    linear: float
    pairs: float
    tokens_in_merging_blocks: float = 0.0
    merging_blocks: int = 0
    relative_flops: float = 1.0

    def of_share(self, share: float) -> ImageCost:
        """Return the mean computation of images of which only ``share`` run."""
        return ImageCost(
            tokens=share * self.tokens,
            linear=share * self.linear,
            pairs=share * self.pairs,
            tokens_in_merging_blocks=share * self.tokens_in_merging_blocks,
            merging_blocks=self.merging_blocks,
            relative_flops=share * self.relative_flops,
        )


NO_COST = ImageCost(0.0, 0.0, 0.0, relative_flops=0.0)


class CostFeatures(NamedTuple):
    """The features of one batch; or the coefficients of the features, in seconds per unit.

    Images with the same `ImageCost` form a group, which merges on its own without a CUDA graph.

    Attributes:
        host: 1 if the host launches the operators of the batch one by one, as always on a CPU; 0 if
            a CUDA graph runs the batch.
        host_merging_blocks: number of blocks that merge in a batch with ``host`` = 1, else 0.
        groups: number of groups in a batch with ``host`` = 1, else 0.
        device: 1 if CUDA graphs are recorded on the device, whether or not one runs this batch;
            else 0.
        device_merging_blocks: number of blocks that merge in a batch with ``device`` = 1, else 0.
        tokens, linear, pairs, tokens_in_merging_blocks: sums over all images, in the units of
            `ImageCost`; the padding of the batch of a CUDA graph counts as images.
        mixed: ``tokens`` of a batch with ``device`` = 1 and more than one group, else 0.
    """

    host: float = 0.0
    host_merging_blocks: float = 0.0
    groups: float = 0.0
    device: float = 0.0
    device_merging_blocks: float = 0.0
    tokens: float = 0.0
    linear: float = 0.0
    pairs: float = 0.0
    tokens_in_merging_blocks: float = 0.0
    mixed: float = 0.0

    def host_and_device(self) -> tuple[CostFeatures, CostFeatures]:
        """Return the features of the host and those of the device, with 0 for all others."""
        host = CostFeatures(
            host=self.host,
            host_merging_blocks=self.host_merging_blocks,
            groups=self.groups,
        )
        device = self._replace(host=0.0, host_merging_blocks=0.0, groups=0.0)
        return host, device

    def dot(self, other: CostFeatures) -> float:
        """Return the sum of products: seconds, for the features of a batch and coefficients."""
        return sum(map(mul, self, other))

    def seconds_of_sides(self, coefficients: CostFeatures) -> tuple[float, float]:
        """Return the seconds of the host and those of the device, as `host_and_device` splits."""
        host = sum(map(mul, self[:_HOST_END], coefficients))
        device = sum(map(mul, self[_HOST_END:], coefficients[_HOST_END:]))
        return host, device


@dataclass(frozen=True)
class RecordedGraphs:
    """The batches of one model that CUDA graphs run.

    For every level there is one graph per bucket. A batch runs in the smallest bucket that fits,
    padded to its size.

    Attributes:
        recorded_costs: the computation of one image at each recorded level.
        buckets: batch sizes of the graphs, in ascending order; empty if no graph is recorded.
        runs_mixed: whether graphs also run batches of other or several schedules, up to the largest
            bucket. The cost of such a batch is that of its own tokens, without padding: a bucket
            that is larger than the batch lets it use the graph of a stronger level.
    """

    recorded_costs: frozenset[ImageCost] = frozenset()
    buckets: tuple[int, ...] = ()
    runs_mixed: bool = False

    def bucket(self, image_cost: ImageCost, images: int) -> int:
        """Return the bucket for a batch of ``images`` equal images; 0 if no graph runs it."""
        if not self.buckets or image_cost not in self.recorded_costs:
            return 0
        if images > self.buckets[-1]:
            return 0
        index = bisect_left(self.buckets, images)
        return self.buckets[index]

    def needs_operators(self, images: int) -> bool:
        """Return whether a batch not of one recorded level is launched operator by operator."""
        if not self.runs_mixed:
            return True
        return images > self.buckets[-1]


NO_GRAPHS = RecordedGraphs()  # as on a CPU


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model from which the computation of an image follows.

    Attributes:
        tokens: tokens at the input of the first block, prefix tokens included.
        prefix: prefix tokens (class token, registers), which never merge.
        depth: number of blocks.
        cost: MACs of the blocks.
    """

    tokens: int
    prefix: int
    depth: int
    cost: Cost

    def token_counts(self, schedule: Schedule) -> tuple[int, ...]:
        """Return the tokens of one image, ``(depth + 1,)``: at the input and after each block."""
        return schedule.tokens(self.depth, self.tokens, self.prefix)

    def image_cost(self, schedule: Schedule) -> ImageCost:
        """Return the computation of one image under ``schedule``."""
        counts = self.token_counts(schedule)
        at_inputs = self.cost.attended(counts)
        at_merging_inputs = [before for before, after in pairwise(counts) if after < before]
        tokens = sum(at_inputs)
        macs = self.cost.linear(counts)
        pairs = sum(count * count for count in at_inputs)
        tokens_in_merging_blocks = sum(at_merging_inputs)
        return ImageCost(
            tokens=tokens / _TOKENS,
            linear=macs / _MACS,
            pairs=pairs / _PAIRS,
            tokens_in_merging_blocks=tokens_in_merging_blocks / _TOKENS,
            merging_blocks=len(at_merging_inputs),
            relative_flops=self.cost.relative(counts),
        )


def batch_features(
    image_costs: Sequence[ImageCost], recorded: RecordedGraphs = NO_GRAPHS
) -> CostFeatures:
    """Return the features of a batch.

    Args:
        image_costs: the computation of each image, at least one.
        recorded: the CUDA graphs of the model.
    """
    images = len(image_costs)
    groups = set(image_costs)
    merging_blocks = max(image_cost.merging_blocks for image_cost in groups)
    if len(groups) == 1:
        bucket = recorded.bucket(image_costs[0], images)
        if bucket:
            return _graph_features(image_costs[0], bucket)
    total = ImageCost(*map(sum, zip(*image_costs, strict=True)))
    batch = _image_features(total)
    if recorded.needs_operators(images):
        batch = batch._replace(host=1.0, host_merging_blocks=merging_blocks, groups=len(groups))
    if recorded.buckets:
        mixed = total.tokens if len(groups) > 1 else 0.0
        batch = batch._replace(device=1.0, device_merging_blocks=merging_blocks, mixed=mixed)
    return batch


def _graph_features(image_cost: ImageCost, bucket: int) -> CostFeatures:
    """Return the features of a batch that a CUDA graph runs: padded to ``bucket`` equal images."""
    batch = _image_features(image_cost, copies=bucket)
    return batch._replace(device=1.0, device_merging_blocks=image_cost.merging_blocks)


def _image_features(total: ImageCost, copies: int = 1) -> CostFeatures:
    """Return the features that add up over images, for ``copies`` of ``total``."""
    return CostFeatures(
        tokens=copies * total.tokens,
        linear=copies * total.linear,
        pairs=copies * total.pairs,
        tokens_in_merging_blocks=copies * total.tokens_in_merging_blocks,
    )


def bottleneck(batch: CostFeatures, coefficients: CostFeatures) -> CostFeatures:
    """Return the features of ``batch`` that determine its time.

    With CUDA graphs these are the features of the slower side, host or device; otherwise all.
    """
    if not batch.device:
        return batch
    host_seconds, device_seconds = batch.seconds_of_sides(coefficients)
    host, device = batch.host_and_device()
    return host if host_seconds > device_seconds else device


@dataclass(frozen=True)
class CostModel:
    """The cost model of one network on its device, as calibrated up to now.

    Attributes:
        coefficients: seconds per unit of each feature, on the machine as it was during warm-up.
        contention: factor by which every batch takes longer now, because of other work.
        delay: seconds by which every batch takes longer in addition, whatever its size.
        margin: how much longer than predicted a batch may take, as a fraction of the prediction:
            the 90th percentile of the recent relative errors.
        recorded: the CUDA graphs; none on a CPU.
    """

    coefficients: CostFeatures
    contention: float = 1.0
    delay: float = 0.0
    margin: float = 0.1
    recorded: RecordedGraphs = NO_GRAPHS

    def seconds(self, batch: CostFeatures) -> float:
        """Return the predicted seconds of a batch, without the margin."""
        # Without `bottleneck`, since several predictions are needed for each batch.
        if batch.device:
            undisturbed_seconds = max(batch.seconds_of_sides(self.coefficients))
        else:
            undisturbed_seconds = batch.dot(self.coefficients)
        return self.contention * undisturbed_seconds + self.delay

    def image_seconds(self, image_cost: ImageCost, mixed: bool = False) -> float:
        """Return the seconds that one image adds to its batch, without padding.

        The sum of quantity * coefficient over the features that add up over images, times
        contention.

        Args:
            mixed: whether the batch has more than one group, so that the feature mixed is not 0.
        """
        per_unit = self.coefficients
        seconds = per_unit.tokens * image_cost.tokens
        seconds += per_unit.linear * image_cost.linear
        seconds += per_unit.pairs * image_cost.pairs
        seconds += per_unit.tokens_in_merging_blocks * image_cost.tokens_in_merging_blocks
        if mixed:
            seconds += per_unit.mixed * image_cost.tokens
        return self.contention * seconds

    def uniform_batch_seconds(self, image_cost: ImageCost, images: int) -> float:
        """Return the seconds of a batch of ``images`` equal images; a CUDA graph pads it."""
        image_seconds = self.image_seconds(image_cost)
        bucket = self.recorded.bucket(image_cost, images)
        if bucket:
            overhead = self._device_overhead(image_cost.merging_blocks)
            return overhead + bucket * image_seconds + self.delay
        return self.unpadded_batch_seconds(
            images, image_cost.merging_blocks, images * image_seconds
        )

    def unpadded_batch_seconds(
        self, images: int, merging_blocks: int, image_seconds: float
    ) -> float:
        """Return the seconds of a batch whose images are not all of one recorded level.

        The host's overhead is that of one group.

        Args:
            images: size of the batch.
            merging_blocks: number of blocks in which the batch merges.
            image_seconds: seconds of all images, a sum over `image_seconds`.
        """
        if not self.recorded.buckets:
            host_seconds = self._host_overhead(merging_blocks)
            return host_seconds + image_seconds + self.delay
        device_seconds = self._device_overhead(merging_blocks) + image_seconds
        if not self.recorded.needs_operators(images):
            return device_seconds + self.delay
        host_seconds = self._host_overhead(merging_blocks)
        return max(host_seconds, device_seconds) + self.delay

    def _host_overhead(self, merging_blocks: int) -> float:
        """Return the host's seconds per batch of one group that merges in so many blocks."""
        per_unit = self.coefficients
        merging = per_unit.host_merging_blocks * merging_blocks
        seconds = per_unit.host + merging + per_unit.groups
        return self.contention * seconds

    def _device_overhead(self, merging_blocks: int) -> float:
        """Return the device's seconds per batch, whatever its size, where graphs are recorded."""
        per_unit = self.coefficients
        merging = per_unit.device_merging_blocks * merging_blocks
        return self.contention * (per_unit.device + merging)

    def undisturbed(self) -> CostModel:
        """Return the model of the same machine without other work, and without a margin."""
        return replace(
            self,
            contention=min(self.contention, 1.0),
            delay=0.0,
            margin=0.0,
        )
