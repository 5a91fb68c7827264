"""The compiled kernels against the plain functions of the core, which tests compare with the
oracle.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

import tome_core
from tome_core.attention import explicit_attention
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.layers import pack_patches
from tome_core.backends.cpu.library import load_library
from tome_core.backends.cpu.linears import (
    KernelLinear,
    OneDnnLinear,
    PackedLinear,
    onednn_works,
    pack_linear,
)
from tome_core.matching import Bipartite
from tome_core.merge import merge

AVX512 = (
    "avx512_bf16" in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else False
)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
pytestmark = pytest.mark.skipif(
    not AVX512, reason="the kernels are for processors with AVX-512 and bfloat16"
)

dtypes = st.sampled_from([torch.float32, torch.bfloat16])
lengths = st.lists(st.integers(1, 90), min_size=1, max_size=4)
heads = st.integers(1, 4)
widths = st.sampled_from([16, 32, 48, 64, 80, 128])


def offsets_of(counts: list[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def test_they_are_compiled_and_used_on_this_processor() -> None:
    assert kernels.available()


@given(lengths, heads, widths, dtypes, st.booleans(), st.booleans(), st.integers(0, 99))
def test_attention(
    counts: list[int], h: int, d: int, dtype: torch.dtype, sized: bool, views: bool, seed: int
) -> None:
    tokens = sum(counts)
    qkv = random(tokens, 3, h, d, seed=seed, dtype=dtype)
    sizes = torch.randint(1, 9, (tokens,)).float() if sized else None
    q, k, v = qkv.unbind(1) if views else (x.contiguous() for x in qkv.unbind(1))
    got = kernels.attention(q, k, v, sizes, offsets_of(counts))
    assert got.dtype == dtype and got.shape == (tokens, h * d)
    start = 0
    for count in counts:
        part = slice(start, start := start + count)
        image = [x[part].double().transpose(0, 1)[None] for x in (q, k, v)]
        own = None if sizes is None else sizes[part].double()[None]
        expected = explicit_attention(*image, own, 0.0)[0]
        torch.testing.assert_close(got[part].double(), expected, rtol=0, atol=TOLERANCE[dtype])


@given(
    st.lists(st.tuples(st.integers(4, 90), st.integers(0, 60)), min_size=1, max_size=4),
    st.integers(0, 4),
    heads,
    widths,
    st.integers(1, 50),
    dtypes,
    st.booleans(),
    st.integers(0, 99),
)
def test_matching_and_merging(
    images: list[tuple[int, int]],
    prefix: int,
    h: int,
    d: int,
    dim: int,
    dtype: torch.dtype,
    sized: bool,
    seed: int,
) -> None:
    counts = [count for count, _ in images]
    matcher = Bipartite()
    left = [matcher.remaining(count, r, prefix) if r else count for count, r in images]
    tokens = sum(counts)
    x = random(tokens, dim, seed=seed, dtype=dtype)
    keys = random(tokens, h, d, seed=seed + 1, dtype=dtype)
    sizes = torch.randint(1, 9, (tokens,)).float() if sized else None
    offsets = offsets_of(counts)
    after = offsets_of(left)
    got, got_sizes, dest, merged = kernels.merge(x, keys, sizes, offsets, after, prefix)
    for i, (count, r) in enumerate(images):
        part = slice(offsets[i], offsets[i + 1])
        out = slice(after[i], after[i + 1])
        before = torch.ones(1, count) if sizes is None else sizes[None, part]
        if left[i] == count:
            assert torch.equal(got[out], x[part]) and torch.equal(got_sizes[None, out], before)
            assert torch.equal(dest[part], torch.arange(count)) and not merged[part].any()
            continue
        matching = matcher(keys[part].float().mean(dim=1)[None], r, prefix)
        expected, expected_sizes = merge(x[None, part], before, matching.dest, left[i])
        assert torch.equal(dest[part], matching.dest[0]) and torch.equal(
            merged[part], matching.merged[0]
        )
        assert torch.equal(got_sizes[out], expected_sizes[0])
        torch.testing.assert_close(got[out], expected[0], rtol=TOLERANCE[dtype] / 2, atol=1e-6)


def test_equal_similarities_go_to_the_lowest_index() -> None:
    keys = torch.ones(41, 2, 16)
    x = torch.randn(41, 8)
    _, _, dest, merged = kernels.merge(
        x, keys, None, torch.tensor([0, 41]), torch.tensor([0, 36]), prefix=1
    )
    matching = Bipartite()(keys.mean(dim=1)[None], 5, 1)
    assert torch.equal(dest, matching.dest[0]) and torch.equal(merged, matching.merged[0])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_image_harms_no_other(poison: float) -> None:
    keys = torch.randn(60, 2, 16)
    x = torch.randn(60, 8)
    offsets = torch.tensor([0, 20, 40, 60])
    after = torch.tensor([0, 15, 30, 45])
    clean = kernels.merge(x, keys, None, offsets, after, 1)
    keys[20:40] = poison
    tokens, sizes, dest, _ = kernels.merge(x, keys, None, offsets, after, 1)
    for part in (slice(0, 15), slice(30, 45)):
        assert torch.equal(tokens[part], clean[0][part])
    assert sizes[15:30].sum() == 20 and 0 <= int(dest[20:40].min()) <= int(dest[20:40].max()) < 15
    out = kernels.attention(keys, keys, keys, None, offsets)
    assert out[20:40].isnan().all() and out[:20].isfinite().all() and out[40:].isfinite().all()


@given(st.integers(1, 9), st.integers(1, 200), dtypes, st.floats(-50, 50), st.integers(0, 99))
def test_layer_norm(rows: int, dim: int, dtype: torch.dtype, shift: float, seed: int) -> None:
    x = random(rows, dim, seed=seed).add(shift).to(dtype)
    weight = random(dim, seed=seed + 1)
    bias = random(dim, seed=seed + 2)
    got = kernels.layer_norm(x, weight.float(), bias.float(), 1e-6)
    expected = F.layer_norm(x.double(), (dim,), weight, bias, 1e-6)
    torch.testing.assert_close(
        got.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-3, atol=1e-2
    )


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), dtypes)
def test_normalisation_of_pixels(
    batch: int, channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    pixels = torch.randint(256, (batch, channels, height, width), dtype=torch.uint8)
    scale = torch.rand(channels) / 255
    shift = torch.randn(1)
    got = kernels.normalise(pixels, scale, shift, dtype)
    expected = (pixels.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)).to(
        dtype
    )
    torch.testing.assert_close(
        got, expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=1e-6
    )


@contextmanager
def one_thread() -> Iterator[None]:
    """By their numbers kernels divide the work otherwise, and few rows are many for one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@given(
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(1, 400),
    dtypes,
    st.booleans(),
    st.integers(0, 99),
)
@example(5, 1536, 70, torch.float32, False, 1)
@example(97, 1536, 70, torch.bfloat16, True, 1)
def test_linear(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, gelu: bool, seed: int
) -> None:
    inputs *= 2
    x = random(rows, inputs, seed=seed, dtype=dtype)
    weight = random(outputs, inputs, seed=seed + 1, dtype=dtype)
    bias = None if seed % 5 == 0 else random(outputs, seed=seed + 2, dtype=dtype)
    packed = kernels.pack_linear(weight, bias)
    with one_thread() if seed % 2 else nullcontext():
        got = kernels.linear(x, packed, gelu)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    expected = F.gelu(expected) if gelu else expected
    torch.testing.assert_close(
        got.double(), expected, rtol=8e-3 if dtype == torch.bfloat16 else 1e-5, atol=inputs * 1e-6
    )
    for part in (slice(rows // 3, None), slice(0, rows // 2)):
        assert torch.equal(
            kernels.linear(x[part], packed, gelu), got[part]
        )  # whichever rows are beside them


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.ones(2, 6), "4 inputs in torch.float32 on cpu was given 6"),
        (torch.ones(2, 2), "was given 2"),
        (torch.ones(2, 4).bfloat16(), "was given 4 in torch.bfloat16"),
        (torch.ones(2, 4, device="meta"), "on meta"),
    ],
)
def test_what_was_not_packed_for_it_is_refused(x: Tensor, says: str) -> None:
    packed = kernels.pack_linear(torch.ones(4, 4), None)
    for call in (lambda: kernels.linear(x, packed), lambda: kernels.mlp(x, packed, packed)):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(ValueError, match="pairs"):
        kernels.pack_linear(torch.ones(128, 3).bfloat16(), None)


@given(
    st.integers(1, 2000),
    st.integers(1, 20),
    st.integers(1, 70),
    st.integers(1, 90),
    dtypes,
    st.integers(0, 99),
)
def test_mlp(
    rows: int, inputs: int, hidden: int, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    x, *weights = (
        random(*shape, seed=seed, dtype=dtype)
        for shape in ((rows, 2 * inputs), (2 * hidden, 2 * inputs), (outputs, 2 * hidden))
    )
    first, second = (kernels.pack_linear(weight, weight[:, 0]) for weight in weights)
    expected = kernels.linear(kernels.linear(x, first, gelu=True), second)
    with one_thread():
        assert torch.equal(kernels.mlp(x, first, second), expected)


@given(st.floats(-30, 30, width=32) | st.floats(-(2.0**99), 2.0**99, width=32))
def test_gelu(x: float) -> None:
    value = torch.tensor([[x]])
    got = kernels.linear(value, kernels.pack_linear(torch.ones(1, 1), None), gelu=True)
    torch.testing.assert_close(got.double(), F.gelu(value.double()), rtol=1e-6, atol=4e-7)


def test_what_is_no_number_stays_none() -> None:
    x = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [float("-inf"), 1.0], [1.0, 1.0]])
    for dtype in TOLERANCE:
        packed = kernels.pack_linear(torch.ones(70, 2, dtype=dtype), None)
        for gelu in (False, True):
            out = kernels.linear(x.to(dtype), packed, gelu)
            assert out[0].isnan().all() and out[1].isposinf().all() and out[3].isfinite().all()
            assert gelu or out[2].isneginf().all()


@pytest.mark.parametrize("kind", [KernelLinear, OneDnnLinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_layers(kind: type[PackedLinear], dtype: torch.dtype) -> None:
    assert onednn_works(dtype)
    linear = torch.nn.Linear(40, 24).to(dtype)
    x = random(3, 5, 40, seed=0, dtype=dtype)
    torch.testing.assert_close(kind(linear)(x), linear(x), rtol=2e-2, atol=TOLERANCE[dtype])
    torch.testing.assert_close(
        kind(linear, gelu=True)(x), F.gelu(linear(x)), rtol=2e-2, atol=TOLERANCE[dtype]
    )
    convolution = torch.nn.Conv2d(3, 24, (4, 2), (4, 2)).to(dtype)
    images = random(2, 3, 17, 13, seed=1, dtype=dtype)
    patches = pack_patches(convolution)
    assert patches is not None
    torch.testing.assert_close(
        patches(images), convolution(images), rtol=2e-2, atol=TOLERANCE[dtype]
    )


@pytest.mark.parametrize(("inputs", "kind"), [(40, KernelLinear), (41, OneDnnLinear)])
def test_an_odd_number_of_inputs_is_for_onednn_in_bfloat16(
    inputs: int, kind: type[PackedLinear]
) -> None:
    if (amx := "amx_bf16" in Path("/proc/cpuinfo").read_text()) and inputs % 2 == 0:
        kind = OneDnnLinear
    library = load_library()
    assert library is not None and bool(library.tome_has_amx()) == amx
    assert kernels.multiplies_fastest(torch.empty(3, inputs))
    assert type(pack_linear(torch.nn.Linear(inputs, 3).bfloat16())) is kind


def test_without_the_kernels_one_line_says_so_and_answers_are_the_same(tmp_path: Path) -> None:
    """A copy of the package that was never compiled, in a process of its own."""
    root = Path(tome_core.__file__).parent
    for source in root.rglob("*.py"):
        target = tmp_path / "tome_core" / source.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    program = """
import logging, torch, tome_core
from timm.models.vision_transformer import VisionTransformer
logging.basicConfig(format="%(message)s")
torch.manual_seed(0)
model = tome_core.patch(VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2).eval())
images = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    for fast in (tome_core.optimize(model), tome_core.optimize(model)):
        torch.testing.assert_close(fast(images, r=3), model(images, r=3), rtol=0, atol=1e-4)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the CPU kernels are not compiled") == 1


def test_the_number_of_threads_holds_in_every_thread() -> None:
    packed = kernels.pack_linear(random(8, 4, seed=1, dtype=torch.float32), None)
    library = load_library()
    assert library is not None
    found = []

    def work() -> None:
        kernels.linear(random(1, 4, seed=2, dtype=torch.float32), packed)
        found.append(library.tome_mlp_rows())  # so many rows for each thread

    with one_thread():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [library.tome_mlp_rows()]
