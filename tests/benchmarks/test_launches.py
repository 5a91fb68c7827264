"""`python -m benchmarks.launches`: counts of operators known by heart, and what must hold of those
of networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.launches.__main__ import main
from benchmarks.launches.counting import Call, Counter, Counts
from benchmarks.launches.kernels import LAUNCHES, READS, total
from benchmarks.launches.networks import count, operators, ours, pairs, plain
from tests.fake_cuda import needs_fake_cuda

pytestmark = needs_fake_cuda

TINY = "vit_tiny_patch16_224"
DIM = 192
HEADS = 3
TOKENS = 197
MIXED = [0, 4, 8, 12, 16]


def counted(run: Callable[[], Any]) -> Counts:
    counter = Counter()
    with FakeTensorMode(), torch.inference_mode(), torch.device("cuda"), counter:
        run()
    return counter.counts


def tiny(batch: int, r: Any, build: Any = ours, **options: Any) -> Counts:
    return count(build, TINY, torch.bfloat16, batch, r, **options).counts


def test_a_sequence_of_operators() -> None:
    def run() -> None:
        x = torch.empty(4, 8)
        y = x.t().contiguous().view(2, 16)[:, :8]
        y.add_(1)
        (x + x.new_ones(1).expand(4, 8)).sort(dim=1, stable=True)

    assert counted(run).calls == [
        Call("aten::clone", 1, 4 * 32, 4 * 32),
        Call("aten::add_", 1, 4 * 16, 4 * 16),
        Call("aten::new_ones", 1, 0, 4),
        Call("aten::add", 1, 4 * 32 + 4, 4 * 32),
        Call("aten::sort", 4, 4 * 32, (4 + 8) * 32),
    ]


@pytest.mark.parametrize(
    ("run", "launches", "read", "written"),
    [
        (lambda: torch.empty(8).view(2, 4).transpose(0, 1), 0, 0, 0),
        (lambda: torch.zeros(8, device="cpu") + 1, 0, 0, 0),
        (lambda: torch.tensor([1, 2], device="cpu").to("cuda"), 1, 16, 16),
        (lambda: torch.empty(8).copy_(torch.empty(8)), 1, 32, 32),
        (lambda: torch.empty(8, dtype=torch.int64).cumsum(0), 1, 64, 64),
        (lambda: torch.empty(8, dtype=torch.bool).cumsum(0), 2, 8, 64),
        (lambda: torch.empty(8).masked_fill(torch.empty(8, dtype=torch.bool), 0), 2, 40, 32),
        (lambda: F.pad(torch.empty(8), (0, 2)), 2, 32, 40),
        (lambda: torch.cat([torch.empty(8), torch.empty(2)]), 1, 40, 40),
        (
            lambda: F.linear(torch.empty(3, 8), torch.empty(2, 8), torch.empty(2)),
            1,
            4 * (24 + 16 + 2),
            24,
        ),
        (lambda: F.gelu(torch.empty(8)), 1, 32, 32),
        (lambda: torch.empty(2, 8, 4).mean(1, dtype=torch.float64), 1, 256, 64),
    ],
)
def test_operators(run: Callable[[], Any], launches: int, read: int, written: int) -> None:
    calls = counted(run).calls
    assert sum(call.launches for call in calls) == launches
    assert sum(call.read for call in calls) == read
    assert sum(call.written for call in calls) == written


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_one_kernel(masked: bool) -> None:
    def run() -> None:
        q, k, v = torch.empty(2, 16, 3, 3, 8, dtype=torch.bfloat16).permute(2, 0, 3, 1, 4)
        mask = torch.empty(2, 1, 1, 16, dtype=torch.bfloat16) if masked else None
        # The kernels write the heads of a token side by side.
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    calls = counted(run).calls
    assert sum(call.launches for call in calls) == 1
    assert calls[0].read == 2 * (3 * 2 * 16 * 3 * 8 + masked * 2 * 16)


def test_operators_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    @torch.library.custom_op("tome_tests::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x + x

    @twice.register_fake
    def _(x: Tensor) -> Tensor:
        return torch.empty_like(x)

    assert counted(lambda: twice(torch.empty(8))).calls == [Call("tome_tests::twice", 1, 32, 32)]
    monkeypatch.setitem(LAUNCHES, "tome_tests::twice", 2)
    monkeypatch.setitem(READS, "tome_tests::twice", lambda given: total(given) // 2)
    assert counted(lambda: twice(torch.empty(8))).calls == [Call("tome_tests::twice", 2, 16, 32)]


@pytest.mark.parametrize("r", [0, 8, MIXED])
@pytest.mark.parametrize("build", [ours, operators])
def test_blocks_launch_alike(build: Any, r: Any) -> None:
    launches = [tiny(5, r, build, depth=depth).launches for depth in (3, 4, 5)]
    block = launches[1] - launches[0]
    assert launches[2] - launches[1] == block
    # What remains belongs to no block, or is special to the first (no sizes yet) or the last (only
    # the class token).
    assert (launches[0] - 3 * block == launches[2] - 5 * block) and launches[0] > 2 * block


@pytest.mark.parametrize("build", [operators, plain])
def test_kernels_a_block_without_merging(build: Any) -> None:
    assert tiny(5, 0, build, depth=4).launches - tiny(5, 0, build, depth=3).launches == 10


@pytest.mark.parametrize("build", [ours, pairs])
@pytest.mark.parametrize(("r", "most"), [(0, 8), (8, 10), (MIXED, 10)])
def test_our_kernels_are_few(build: Any, r: Any, most: int) -> None:
    assert tiny(5, r, build, depth=4).launches - tiny(5, r, build, depth=3).launches <= most


@pytest.mark.parametrize("build", [operators, plain])
def test_bytes_of_a_block(build: Any) -> None:
    batch = 2
    of_all = {"global_pool": "avg", "class_token": False}
    deep, shallow = (tiny(batch, 0, build, depth=depth, **of_all) for depth in (4, 3))
    rows = batch * (TOKENS - 1)
    half = 2
    single = 4
    linear = [(DIM, 3 * DIM), (DIM, DIM), (DIM, 4 * DIM), (4 * DIM, DIM)]
    in_linear = sum(half * (rows * (i + o) + i * o + o) for i, o in linear)
    assert deep.linear_bytes - shallow.linear_bytes == in_linear
    tokens = half * rows * DIM
    gelu = 2 * 4 * tokens
    attention = (3 + 1) * tokens
    weights = 2 * half * 2 * DIM
    norms = 2 * 2 * tokens
    residuals = 2 * 3 * tokens
    more = single * (2 * 2 * rows + rows * HEADS)  # means and deviations, sums of attention weights
    wanted = norms + residuals + attention + gelu + weights + more
    # Attention gives the state of a generator too, of a few bytes.
    assert wanted <= deep.other_bytes - shallow.other_bytes <= wanted + 64


@pytest.mark.parametrize("r", [0, 8, MIXED])
def test_our_kernels_move_less(r: Any) -> None:
    assert tiny(5, r).other_bytes < tiny(5, r, operators).other_bytes
    assert tiny(5, r).linear_bytes <= tiny(5, r, operators).linear_bytes


@pytest.mark.parametrize("build", [ours, operators])
def test_mixed_batches_launch_alike(build: Any) -> None:
    few, many = (
        count(build, TINY, torch.bfloat16, 5 * times, MIXED * times, depth=3) for times in (1, 4)
    )
    assert few.counts.launches == many.counts.launches
    assert few.once.launches == many.once.launches > 0
    assert few.counts.other_bytes < many.counts.other_bytes


def test_merging_moves_less_the_more_it_merges() -> None:
    counts = [tiny(8, r, depth=4) for r in (0, 4, 8, 16)]
    in_linear = [one.linear_bytes for one in counts]
    assert in_linear == sorted(in_linear, reverse=True)
    outside = [one.other_bytes for one in counts[1:]]
    assert outside == sorted(outside, reverse=True)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--model",
        "Ti",
        "--batch",
        "1",
        "2",
        "--r",
        "0",
        "mixed",
        "--by-operator",
        "--network",
        "ours",
        "timm",
    ]
    assert main([*arguments, "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text("utf-8"))
    cases = [(row["network"], row["batch"], row["r"]) for row in rows]
    assert cases == [
        ("ours", 1, "0"),
        ("ours", 2, "0"),
        ("ours", 2, "mixed"),
        ("timm", 1, "0"),
        ("timm", 2, "0"),
    ]
    whole = tiny(2, 0)
    assert rows[1]["launches"] == whole.launches and rows[4]["block"] == 10
    assert rows[1]["other_gb"] * 1e9 == pytest.approx(whole.other_bytes)
    assert rows[2]["once"] > 0
    printed = capsys.readouterr().out
    assert "ours, batch 2, r=mixed" in printed and "aten::gelu" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--r", "many"], "r must be a number or mixed, got 'many'"),
        (["--model", "none"], "timm has no model 'none'"),
        (["--network", "tome"], "name a checkout"),
        (["--tome", "/nowhere"], "/nowhere is no checkout"),
    ],
)
def test_refused(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().out
