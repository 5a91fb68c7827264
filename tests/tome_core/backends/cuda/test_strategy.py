"""Blocks of every kind by the kernels compared with the reference strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLU
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.models import DEPTH, as_schedule, make_images, make_vit, randomise, specs
from tests.tome_core.oracle import Spec
from tome_core import Bipartite, Kth, MergedViT, Schedule, patch
from tome_core.backends.cuda import strategy as module
from tome_core.backends.cuda.strategy import TritonStrategy
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from tome_core.metric import BlockTensors
from tome_core.networks.vjepa2 import VJepa2
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import make_plan
from tome_core.rules import RuleName

SIZES: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 32,
    "depth": DEPTH,
    "num_heads": 2,
}
KINDS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "plain": (make_vit, {}),
    "average": (make_vit, {"class_token": False, "global_pool": "avg"}),
    "registers": (make_vit, {"reg_tokens": 4, "global_pool": "map"}),
    "qk-norm": (make_vit, {"qk_norm": True}),
    "gated": (make_vit, {"gated": True, "attn_head_dim": 16}),
    "swiglu": (make_vit, {"mlp_layer": SwiGLU, "init_values": 0.3}),
    "post-norm": (make_vit, {"block_fn": ResPostBlock, "init_values": 0.5}),
    "side-by-side": (make_vit, {"block_fn": ParallelThingsBlock}),
    "one-head": (make_vit, {"num_heads": 1}),
    "eva02": (Eva, {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True}),
    "rotary-average": (Eva, {"use_rot_pos_emb": True, "global_pool": "avg", "num_reg_tokens": 2}),
    "v-jepa-2": (VJepa2, {"frames": 2, "tubelet": 1, "img_size": (8, 16)}),
    "rotary-post-norm": (Eva, {"use_rot_pos_emb": True, "use_post_norm": True, "qkv_fused": False}),
}
# Kernels for their merging alone.
ATTENDING_OTHERWISE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "relative": (VisionTransformerRelPos, {"class_token": True}),
    "beit": (Beit, {"use_shared_rel_pos_bias": True}),
    "differential": (make_vit, {"attn_layer": "diff", "num_heads": 1}),
}
ALL = KINDS | ATTENDING_OTHERWISE


@cache
def reference_of(kind: str, dtype: torch.dtype = torch.float32) -> MergedViT:
    build, options = ALL[kind]
    network = build(**{**SIZES, **({} if build is make_vit else {"num_classes": 5}), **options})
    randomise(network)
    model = patch(network.eval().to(DEVICE, dtype))
    assert type(model.execution.strategy) is ReferenceStrategy
    return model


def by_kernels(model: MergedViT, **options: Any) -> MergedViT:
    execution = Execution(TritonStrategy(), **options)
    return MergedViT(model.adapter, model.merging, execution).eval()


def images(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return make_images(count, dtype=dtype).to(DEVICE)


@contextmanager
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Collect the names of the kernels that are launched in the context."""
    names: list[str] = []

    def noting(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any) -> Any:
            names.append(name)
            return launch(*arguments)

        return wrapper

    with monkeypatch.context() as patching:
        kernels = module._LAUNCHERS
        noted = {name: noting(name, getattr(kernels, name)) for name in kernels._fields}
        patching.setattr(module, "_LAUNCHERS", kernels._replace(**noted))
        yield names


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=2)
@given(st.lists(specs(), min_size=1, max_size=4))
@torch.no_grad()
def test_equals_the_reference(kind: str, batch: list[Spec]) -> None:
    reference = reference_of(kind)
    model = by_kernels(reference)
    r = [as_schedule(spec) for spec in batch]
    x = images(len(batch))
    expected = reference.trace(x, r=r)
    result = model.trace(x, r=r)
    assert torch.equal(result.source, expected.source)
    assert result.source.dtype == expected.source.dtype
    for one, other in ((result.logits, expected.logits), (model(x, r=r), expected.logits)):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    for name in ("tokens", "sizes"):
        for one, other in zip(getattr(result, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pairs", "nearest"])
@pytest.mark.parametrize("kind", ["plain", "average", "registers", "rotary-average", "relative"])
@torch.no_grad()
def test_pairs_equal_the_reference(
    kind: str, name: RuleName, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = reference_of(kind)
    reference = MergedViT(paper.adapter, paper.merging.with_rule(name), paper.execution).eval()
    r: list[int | Schedule] = [3, 0, Schedule.per_layer([0, 5])]
    x = images(3)
    expected = reference.trace(x, r=r)
    with launched(monkeypatch) as launches:
        result = by_kernels(reference).trace(x, r=r)
    assert launches.count("match_pairs") == DEPTH
    assert "match" not in launches
    assert torch.equal(result.source, expected.source)
    for part in ("tokens", "sizes"):
        for one, other in zip(getattr(result, part), getattr(expected, part), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("r", [3, [4, 0, 2]], ids=["alike", "mixed"])
@pytest.mark.parametrize("kind", ALL)
@torch.no_grad()
def test_kernels_run_attention_and_merging_of_every_block(
    kind: str,
    r: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with launched(monkeypatch) as names:
        by_kernels(reference_of(kind)).trace(images(3), r=r)
    a_block = ["attention", "match", "merge"] if kind in KINDS else ["match", "merge"]
    assert names == a_block * DEPTH


@pytest.mark.parametrize("kind", ["plain", "eva02", "relative"])
@torch.no_grad()
def test_without_proportional_attention(kind: str) -> None:
    reference = patch(reference_of(kind).adapter.network, prop_attn=False)
    x = images(2)
    r = [3, 5]
    torch.testing.assert_close(
        by_kernels(reference)(x, r=r), reference(x, r=r), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["qk-norm", "eva02", "rotary-average"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_sixteen_bit_results_are_as_exact_as_the_reference(kind: str, dtype: torch.dtype) -> None:
    """The error is of the order of the rounding error of the reference itself."""
    reference = reference_of(kind, dtype)
    x = images(4, dtype)
    exact = copy.deepcopy(reference).double()(x.double(), r=0)
    error = (by_kernels(reference)(x, r=0).double() - exact).abs().max()
    assert error <= 3 * (reference(x, r=0).double() - exact).abs().max() + 1e-3
    trace = by_kernels(reference).trace(x, r=[2, 0, 4, 2])
    assert trace.logits.isfinite().all()
    assert trace.sizes[2].dtype == torch.float32
    assert all(sizes.sum() == trace.source.shape[1] for sizes in trace.sizes)


def state_of(rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens ``(T, 32)``, and queries, keys and values, ``(3, T, 2, 16)``."""
    both = torch.randn(rows, 32 + 96, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    x, qkv = both.split([32, 96], dim=1)
    return x.contiguous(), qkv.unflatten(1, (3, 2, 16)).transpose(0, 1).contiguous()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_result_is_independent_of_the_other_images(dtype: torch.dtype) -> None:
    """Attention, merging, sizes, sources and positions, over two blocks."""
    merging = reference_of("eva02").merging
    strategy = TritonStrategy()
    schedules = [Schedule.of(r) for r in (4, 0, 2)]
    x, qkv = state_of(3 * 17, dtype)

    def run(rows: slice, which: slice) -> list[Any]:
        plan = make_plan(schedules[which], DEPTH, 17, 1, Bipartite())
        places = [torch.arange(17, device=DEVICE).expand(group.images, 17) for group in plan.groups]
        # The plan expects the images in the order of their tokens.
        order = torch.cat([torch.arange(17) + 17 * image for image in plan.order]).to(DEVICE)
        q, k, v = (part[rows][order] for part in qkv)
        packed = Packed(x[rows][order], (None,) * len(plan.groups), tuple(places), tuple(places))
        for index in range(2):
            if index:
                q = k = v = packed.tokens.unflatten(1, (2, 16))
            context = BlockContext(merging, plan, index, packed)
            attended = strategy.attend(context, (q, k, v), 0.0)
            features = BlockTensors(packed.tokens, packed.tokens, q, k, v)
            packed = strategy.merge(context.with_tokens(attended), features)
        tokens = [view for _, view in plan.views(packed.tokens, 2)]
        # Alone, an image that merges nothing has no sizes.
        sizes = [
            torch.ones(1, 17, device=DEVICE) if part is None else part for part in packed.sizes
        ]
        parts = tokens, sizes, packed.sources, packed.positions
        return list(zip(*(plan.by_image(part) for part in parts if part is not None), strict=True))

    together = run(slice(None), slice(None))
    for image, expected in enumerate(together):
        (alone,) = run(slice(17 * image, 17 * image + 17), slice(image, image + 1))
        for one, other in zip(alone, expected, strict=True):
            assert torch.equal(one, other)


def test_unsupported_calls_run_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(2)
    with launched(monkeypatch) as names:
        with torch.no_grad():
            by_kernels(copy.deepcopy(reference_of("plain")).double())(x.double(), r=2)
            by_kernels(patch(make_vit(dtype=torch.float32).to(DEVICE)))(
                x, r=2
            )  # heads of 8 channels
            with torch.autocast(DEVICE, torch.bfloat16):
                by_kernels(reference_of("plain"))(x, r=2)
        by_kernels(reference_of("plain"))(x, r=2)  # gradients
    assert names == []


@pytest.mark.parametrize("kind", ["plain", "eva02"])
@torch.no_grad()
def test_residuals_are_those_of_the_reference(kind: str) -> None:
    reference = reference_of(kind)
    x = images(3)
    r = [0, 4, 2]
    expected = reference.trace(x, r=r, residual=True).unmerge()
    found = by_kernels(reference).trace(x, r=r, residual=True).unmerge()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_matchers_go_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = patch(reference_of("eva02").adapter.network, matcher=Kth(3))
    x = images(3)
    r: list[int | Schedule] = [0, 1, Schedule.per_layer([1, 0, 1])]
    with launched(monkeypatch) as names:
        result = by_kernels(reference).trace(x, r=r)
    assert names == ["attention"] * DEPTH
    expected = reference.trace(x, r=r)
    assert torch.equal(result.source, expected.source)
    torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_reference() -> None:
    reference = copy.deepcopy(reference_of("eva02"))
    gradients: list[list[Tensor]] = []
    for model in (reference, by_kernels(reference)):
        model.zero_grad()
        model(images(3), r=[0, 4, 2]).square().sum().backward()
        gradients.append([])
        for parameter in model.parameters():
            assert parameter.grad is not None
            gradients[-1].append(parameter.grad.clone())
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_copies_and_pickles() -> None:
    strategy = TritonStrategy()
    assert copy.deepcopy(strategy) is strategy
    assert ForkingPickler.loads(ForkingPickler.dumps(strategy)) == strategy


class Launches(TorchDispatchMode):
    """Records the operators that would launch kernels on a GPU; views launch none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not func.name().startswith("prim::"):
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("r", [[3, 3, 3], [0, 2, 4]], ids=["alike", "mixed"])
def test_launches_on_a_fake_gpu(r: list[int], traced: bool) -> None:
    """The host never waits for the device, and the launches are the expected ones."""
    strategy = TritonStrategy()
    merging = reference_of("eva02").merging
    plan = make_plan(tuple(map(Schedule.of, r)), DEPTH, 17, 1, Bipartite())
    with FakeTensorMode(), torch.no_grad(), torch.device("cuda"):
        x = torch.empty(51, 32, dtype=torch.bfloat16)
        qkv = torch.empty(51, 3, 2, 16, dtype=torch.bfloat16)
        places = (
            tuple(torch.empty(group.images, 17, dtype=torch.int64) for group in plan.groups)
            if traced
            else None
        )
        packed = Packed(x, (None,) * len(plan.groups), places, places)
        q, k, v = qkv.unbind(1)
        with Launches() as launches:
            context = BlockContext(merging, plan, 0, packed)
            attended = strategy.attend(context, (q, k, v.contiguous()), 0.0)
            features = BlockTensors(x, x, q, k, v)
            merged = strategy.merge(context.with_tokens(attended), features)
    assert attended.shape == x.shape
    assert merged.tokens.shape == (plan.length(1), 32)
    for index, group in enumerate(plan.groups):
        left = group.images, group.tokens[1]
        sizes = merged.sizes[index]
        assert sizes is not None
        assert (sizes.shape, sizes.dtype, sizes.device.type) == (
            left,
            torch.float32,
            "cuda",
        )
        if traced:
            assert merged.sources is not None
            assert merged.positions is not None
            assert (merged.sources[index].shape, merged.sources[index].dtype) == (
                (group.images, 17),
                torch.int64,
            )
            assert (merged.positions[index].shape, merged.positions[index].dtype) == (
                left,
                torch.int64,
            )
    ours = [name for name in launches.names if name.startswith("tome::")]
    assert ours == ["tome::attention", "tome::match", "tome::merge"]
    after = launches.names[launches.names.index("tome::merge") + 1 :]
    sources = [
        "aten::cat",
        "aten::add.Tensor",
        "aten::index.Tensor",
        "aten::sub.Tensor",
        "aten::_to_copy",
    ]
    positions = ["aten::index_select", "aten::index_select"]
    if len(plan.groups) > 1:
        positions.insert(0, "aten::cat")
    assert after == (sources + positions if traced else [])
