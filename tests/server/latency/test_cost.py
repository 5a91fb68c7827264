"""The cost model: features of a batch, and its seconds, on made-up coefficients."""

import pytest

from server.latency.cost import (
    CostFeatures,
    CostModel,
    Geometry,
    ImageCost,
    RecordedGraphs,
    batch_features,
    bottleneck,
)
from tome_core.cost import BlockCost, Cost
from tome_core.schedule import Schedule

GEOMETRY = Geometry(17, 1, 3, Cost(100_000, (BlockCost(30_000, 50_000, 70, 10),) * 3, prefix=1))
R4 = GEOMETRY.image_cost(Schedule.constant(4))
R0 = GEOMETRY.image_cost(Schedule.constant(0))


def test_the_computation_of_an_image_is_exact() -> None:
    # 17, 13 and 9 tokens enter a block; 13, 9 and 5 tokens leave its merging.
    assert R4.tokens == pytest.approx(39 / 1e3)
    assert R4.pairs == pytest.approx((17**2 + 13**2 + 9**2) / 1e6)
    assert R4.linear == pytest.approx((100_000 + 39 * 30_000 + 27 * 50_000) / 1e9)
    assert R4.tokens_in_merging_blocks == pytest.approx(39 / 1e3)
    assert R4.merging_blocks == 3


def test_blocks_of_the_pool_count_as_blocks_that_do_not_merge() -> None:
    block = BlockCost(30_000, 50_000, 70, 10)
    cost = Cost(100_000, (block,) * 3, pool_blocks=(block,) * 2)
    image = Geometry(17, 0, 3, cost).image_cost(Schedule.constant(4))
    assert image.tokens == pytest.approx((17 + 13 + 9 + 5 + 5) / 1e3)
    assert image.pairs == pytest.approx((17**2 + 13**2 + 9**2 + 2 * 5**2) / 1e6)
    assert image.linear == pytest.approx((100_000 + 49 * 30_000 + 37 * 50_000) / 1e9)
    assert image.tokens_in_merging_blocks == pytest.approx(39 / 1e3)
    assert image.merging_blocks == 3


def test_only_tokens_of_blocks_that_merge_count_as_merged() -> None:
    one_block = GEOMETRY.image_cost(Schedule.per_layer([0, 4]))
    assert one_block.tokens_in_merging_blocks == pytest.approx(17 / 1e3)
    assert one_block.merging_blocks == 1
    assert (R0.tokens_in_merging_blocks, R0.merging_blocks) == (0, 0)


def test_the_features_of_a_batch_are_sums_over_its_images() -> None:
    batch = batch_features([R4, R4, R0])
    assert (batch.host, batch.host_merging_blocks, batch.groups) == (1, 3, 2)
    assert (batch.device, batch.device_merging_blocks, batch.mixed) == (0, 0, 0)
    assert batch.tokens == pytest.approx(2 * R4.tokens + 51 / 1e3)
    assert batch.tokens_in_merging_blocks == pytest.approx(2 * R4.tokens_in_merging_blocks)


def test_without_cuda_graphs_host_and_device_add_up() -> None:
    cost_model = CostModel(
        CostFeatures(host=0.5, groups=0.25, tokens=2.0), contention=3.0, delay=0.125
    )
    batch = batch_features([R4] * 2)
    assert bottleneck(batch, cost_model.coefficients) == batch
    assert cost_model.seconds(batch) == pytest.approx(3 * (0.75 + 2 * 2 * R4.tokens) + 0.125)


def test_with_cuda_graphs_the_slower_side_determines_the_time() -> None:
    graphs = RecordedGraphs(frozenset({R0}), (1, 2, 4))
    batch = batch_features([R4], graphs)
    launching = batch._replace(
        device=0, device_merging_blocks=0, tokens=0, linear=0, pairs=0, tokens_in_merging_blocks=0
    )
    computing = batch._replace(host=0, host_merging_blocks=0, groups=0)
    slow_host = CostFeatures(host=1.0, device=0.5)
    slow_device = CostFeatures(host=1.0, device=0.5, device_merging_blocks=0.25)
    assert bottleneck(batch, slow_host) == launching
    assert bottleneck(batch, slow_device) == computing
    assert CostModel(slow_host, recorded=graphs).seconds(batch) == 1.0
    assert CostModel(slow_device, recorded=graphs).seconds(batch) == 0.5 + 3 * 0.25


def test_a_graph_pads_its_batch_to_the_bucket() -> None:
    graphs = RecordedGraphs(frozenset({R4}), (1, 4))
    batch = batch_features([R4] * 3, graphs)
    assert (batch.host, batch.device, batch.device_merging_blocks) == (0, 1, 3)
    assert batch.tokens == pytest.approx(4 * R4.tokens)
    assert batch.pairs == pytest.approx(4 * R4.pairs)


def test_the_time_of_an_image_counts_every_quantity_once() -> None:
    coefficients = CostFeatures(
        tokens=1.0, linear=10.0, pairs=100.0, tokens_in_merging_blocks=1000.0, mixed=0.5
    )
    cost_model = CostModel(coefficients, contention=2.0)
    image = ImageCost(
        tokens=1.0, linear=2.0, pairs=3.0, tokens_in_merging_blocks=4.0, merging_blocks=1
    )
    assert cost_model.image_seconds(image) == 2 * 4321
    assert cost_model.image_seconds(image, mixed=True) == 2 * 4321.5


def test_a_quiet_machine_has_no_contention_no_delay_and_no_margin() -> None:
    slow = CostModel(CostFeatures(), contention=2.0, delay=1.0, margin=0.5)
    assert slow.undisturbed() == CostModel(CostFeatures(), contention=1.0, delay=0.0, margin=0.0)
    fast = CostModel(CostFeatures(), contention=0.75)
    assert fast.undisturbed().contention == 0.75


def test_a_second_pass_counts_by_its_share() -> None:
    second = R4.of_share(0.25)
    assert second.tokens == pytest.approx(R4.tokens / 4)
    assert second.linear == pytest.approx(R4.linear / 4)
    assert second.pairs == pytest.approx(R4.pairs / 4)
    assert second.tokens_in_merging_blocks == pytest.approx(R4.tokens_in_merging_blocks / 4)
    assert second.relative_flops == pytest.approx(R4.relative_flops / 4)
    assert R4.of_share(1.0) == R4
