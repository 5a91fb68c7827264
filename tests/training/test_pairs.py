"""The rule that merges the most similar pairs, beside a slow statement of it."""

import pytest
import torch
from torch import Tensor

import tome_core
from research.ablations.clustering import Greedy
from training.models import vit
from training.pairs import mean_with_norm, pairs_of

PAIRS = Greedy(lower_stays=False)


def slow_pairs(metric: Tensor, r: int, prefix: int) -> list[tuple[int, int]]:
    unit = torch.nn.functional.normalize(metric, dim=-1)
    similarity = (unit @ unit.T).tolist()
    free = set(range(prefix, len(metric)))
    pairs = []
    for _ in range(min(r, (len(metric) - prefix) // 2)):
        candidates = [(low, high) for low in free for high in free if low < high]
        best = min(candidates, key=lambda pair: (-similarity[pair[0]][pair[1]], pair))
        pairs.append(best)
        free -= set(best)
    return pairs


@pytest.mark.parametrize("r", [1, 4, 9])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_the_most_similar_free_pairs_merge(r: int, prefix: int) -> None:
    torch.manual_seed(r)
    metric = torch.randn(3, 15, 4, dtype=torch.float64)
    matching = PAIRS(metric, r, prefix)
    for image in range(3):
        pairs = slow_pairs(metric[image], r, prefix)
        dest = matching.dest[image].tolist()
        assert {low for low, _ in pairs} == set(matching.merged[image].nonzero()[:, 0].tolist())
        assert all(dest[low] == dest[high] for low, high in pairs)
        assert len(set(dest)) == PAIRS.remaining(15, r, prefix) == 15 - len(pairs)


def test_equal_pairs_merge_from_the_front() -> None:
    matching = PAIRS(torch.ones(1, 6, 2), r=2, prefix=1)
    assert matching.dest[0].tolist() == [0, 1, 1, 2, 2, 3]


def test_the_norm_of_a_merged_token_is_the_mean_of_norms() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 9, 5, dtype=torch.float64)
    sizes = torch.randint(1, 4, (2, 9)).double()
    matching = PAIRS(tokens, r=3, prefix=1)
    merged, merged_sizes = mean_with_norm(tokens, sizes, matching, 6)
    assert torch.equal(merged_sizes.sum(1), sizes.sum(1))
    for image in range(2):
        for position in range(6):
            parts = matching.dest[image] == position
            weights = sizes[image, parts, None]
            mean = (weights * tokens[image, parts]).sum(0) / weights.sum()
            norm = (weights * tokens[image, parts].norm(dim=-1, keepdim=True)).sum() / weights.sum()
            torch.testing.assert_close(merged[image, position], mean * norm / mean.norm())


def test_a_model_merges_by_either_rule() -> None:
    torch.manual_seed(0)
    model = tome_core.patch(vit(4)).eval()
    images = torch.randn(2, 1, 28, 28)
    paper = model.merging
    merged_by_paper = model(images, r=4)
    model.merging = pairs_of(paper)
    merged_by_pairs = model(images, r=4)
    assert not torch.equal(merged_by_pairs, merged_by_paper)
    merged_by_pairs.sum().backward()
    model.merging = paper
    assert torch.equal(model(images, r=4), merged_by_paper)
