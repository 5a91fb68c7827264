"""The matching of a whole buffer, against `Bipartite` on each image alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.tome_core.backends.cuda.compiler import Compiled, compile_in_process
from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.backends.cuda.merging_cases import CASES, Ragged, offsets, ragged
from tome_core.backends.cuda import matching
from tome_core.backends.cuda.attention import unpack
from tome_core.backends.cuda.matching import PackedMatching, launch_match, match
from tome_core.matching import Bipartite

HEADS = 2
WIDTH = 8
PREFIXES = [0, 1, 2, 5]


def random_qkv(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 3 * HEADS * WIDTH, generator=generator).to(DEVICE, dtype)


def run(qkv: Tensor, batch: Ragged, prefix: int) -> PackedMatching:
    before = offsets(batch.lengths)
    after = offsets(batch.after)
    return match(unpack(qkv, HEADS)[1], before, after, batch.longest, sum(batch.after), prefix)


def expected_dest(qkv: Tensor, batch: Ragged, prefix: int) -> list[int]:
    """The places that `Bipartite` gives, image by image."""
    result: list[int] = []
    new_start = 0
    for part, r, left in zip(qkv.split(batch.lengths), batch.r, batch.after, strict=True):
        keys = part.view(len(part), 3, HEADS, WIDTH)[:, 1].float().mean(1)
        dest = Bipartite()(keys[None], r, prefix).dest[0].tolist() if r else range(len(part))
        result += [new_start + place for place in dest]
        new_start += left
    return result


def assert_matched(matched: PackedMatching, dest: list[int], batch: Ragged, prefix: int) -> None:
    """Check ``matched.dest``, and that the order by destination follows from it."""
    assert matched.dest.tolist() == dest
    stays = set()
    start = 0
    for length, r in zip(batch.lengths, batch.r, strict=True):
        # All tokens of B and the prefix stay; so do tokens of A that are alone at their place.
        of_a = range(start + prefix + prefix % 2, start + length, 2) if r else ()
        stays |= set(range(start, start + length)) - {
            token for token in of_a if dest.count(dest[token]) > 1
        }
        start += length
    expected = sorted(range(len(dest)), key=lambda token: (dest[token], token not in stays, token))
    assert matched.order.tolist() == expected
    counts = [dest.count(place) for place in range(sum(batch.after))]
    assert [end - begin for begin, end in pairwise(matched.segment_starts.tolist())] == counts
    assert matched.segment_starts[0] == 0
    assert matched.segment_starts[-1] == len(dest)


@pytest.mark.parametrize("prefix", PREFIXES)
@settings(max_examples=12)
@given(st.data())
def test_equals_bipartite(prefix: int, data: st.DataObject) -> None:
    batch = data.draw(ragged(prefix))
    qkv = random_qkv(sum(batch.lengths), seed=data.draw(st.integers(0, 99)))
    assert_matched(run(qkv, batch, prefix), expected_dest(qkv, batch, prefix), batch, prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
@settings(max_examples=12)
@given(st.data())
def test_among_equal_similarities_the_lowest_index_wins(prefix: int, data: st.DataObject) -> None:
    """Each key has one of three values, with one channel that is not 0: similarities are exact."""
    batch = data.draw(ragged(prefix))
    values = data.draw(
        st.lists(st.integers(0, 2), min_size=sum(batch.lengths), max_size=sum(batch.lengths))
    )
    qkv = torch.zeros(len(values), 3, HEADS, WIDTH, device=DEVICE)
    qkv[range(len(values)), 1, :, values] = 4.0
    qkv = qkv.flatten(1)
    assert_matched(run(qkv, batch, prefix), expected_dest(qkv, batch, prefix), batch, prefix)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_keys(dtype: torch.dtype) -> None:
    batch = Ragged((37, 12, 12), (16, 0, 5))
    qkv = random_qkv(61, dtype=dtype)
    assert_matched(run(qkv, batch, 1), expected_dest(qkv, batch, 1), batch, 1)


@pytest.mark.parametrize(
    ("length", "r", "prefix"),
    [(197, 16, 1), (257, 40, 1), (577, 100, 1), (1025, 512, 1), (580, 287, 5)],
)
def test_long_images_equal_bipartite(length: int, r: int, prefix: int) -> None:
    batch = Ragged((length, 30), (r, 3))
    qkv = random_qkv(length + 30)
    matched = run(qkv, batch, prefix)
    assert matched.dest.tolist() == expected_dest(qkv, batch, prefix)
    assert sorted(matched.order.tolist()) == list(range(length + 30))
    assert (matched.dest[matched.order.long()].diff() >= 0).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
def test_zero_keys_nan_and_infinity() -> None:
    """NaN merges first, into the first of B, as with PyTorch's ``max`` and ``argsort``."""
    batch = Ragged((20, 21), (4, 7))
    for value in (0.0, float("nan"), float("inf")):
        qkv = random_qkv(41)
        qkv[[3, 4, 9, 30, 33]] = value
        assert_matched(run(qkv, batch, 1), expected_dest(qkv, batch, 1), batch, 1)


@settings(max_examples=10)
@given(ragged(1), st.integers(0, 4))
def test_result_is_independent_of_the_other_images(batch: Ragged, image: int) -> None:
    image %= len(batch.lengths)
    qkv = random_qkv(sum(batch.lengths))
    together = run(qkv, batch, 1)
    alone = Ragged((batch.lengths[image],), (batch.r[image],))
    start = sum(batch.lengths[:image])
    new_start = sum(batch.after[:image])
    matched = run(qkv[start : start + alone.longest].clone(), alone, 1)
    end = start + alone.longest
    new_end = new_start + alone.after[0]
    assert torch.equal(together.dest[start:end] - new_start, matched.dest)
    assert torch.equal(together.order[start:end] - start, matched.order)
    assert torch.equal(
        together.segment_starts[new_start : new_end + 1] - start, matched.segment_starts
    )


def test_other_tiles_and_a_loose_bound_give_the_same_result() -> None:
    batch = Ragged((70, 33), (20, 0))
    qkv = random_qkv(103)
    before = offsets(batch.lengths)
    after = offsets(batch.after)
    expected = run(qkv, batch, 1)
    for tiles in (matching.Tiles(16, 16, 4, "ieee"), matching.Tiles(32, 64, 8)):
        result = launch_match(unpack(qkv, HEADS)[1], before, after, 200, sum(batch.after), 1, tiles)
        assert all(map(torch.equal, result, expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [WIDTH, 16, 20])
def test_a_separate_metric_gives_the_same_bits(dtype: torch.dtype, width: int) -> None:
    batch = Ragged((70, 33, 5), (20, 0, 2))
    qkv = torch.randn(108, 3 * HEADS * width, generator=torch.Generator().manual_seed(0))
    keys = unpack(qkv.to(DEVICE, dtype), HEADS)[1]
    results = [
        launch_match(
            keys,
            offsets(batch.lengths),
            offsets(batch.after),
            batch.longest,
            sum(batch.after),
            1,
            separate_metric=separate,
        )
        for separate in (False, True)
    ]
    assert all(map(torch.equal, *results))


def test_keys_may_be_contiguous() -> None:
    batch = Ragged((21, 9), (6, 2))
    qkv = random_qkv(30)
    before = offsets(batch.lengths)
    after = offsets(batch.after)
    alone = match(unpack(qkv, HEADS)[1].contiguous(), before, after, 21, sum(batch.after), 1)
    assert all(map(torch.equal, alone, run(qkv, batch, 1)))


def test_match_is_a_valid_operator() -> None:
    batch = Ragged((9, 4), (2, 0))
    keys = unpack(random_qkv(13), HEADS)[1]
    arguments = (keys, offsets(batch.lengths), offsets(batch.after), 9, 11, 1)
    torch.library.opcheck(torch.ops.tome.match.default, arguments)


@pytest.fixture(scope="module", params=[80, 90])
def compiled(request: pytest.FixtureRequest) -> list[Compiled]:
    return compile_in_process("tests.tome_core.backends.cuda.merging_cases", [request.param])


def test_compiles_without_spills(compiled: list[Compiled]) -> None:
    assert len(compiled) == len(CASES)
    assert not [case for case in compiled if case.stack]
    compared = ("best_partner", "similarity")
    assert all(case.products for case in compiled if case.name.startswith(compared))
    wide = [
        case.widest
        for case in compiled
        if case.name.startswith("merge") and " 192 " not in case.name
    ]
    assert wide
    assert min(wide) == 128
    assert all(case.shared <= 96 << 10 for case in compiled)
