from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import LayerScale, Mlp
from torch import nn

from tests.tome_core.models import VARIANTS, make_images, make_vit
from tests.tome_core.test_eva import MODELS as EVAS
from tests.tome_core.test_eva import make_eva
from tests.tome_core.test_relative import BEITS
from tests.tome_core.test_relative import make as make_beit
from tome_core import Schedule, optimize, patch
from tome_core.adapters.inference import replace_convolutions
from tome_core.backends.cpu import kernels
from tome_core.backends.cpu.linears import onednn_works
from tome_core.backends.cpu.strategy import KernelStrategy
from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.matching import Kth
from tome_core.rules import RULE_NAMES, RuleName

KERNEL_DTYPES = [dtype for dtype in kernels.DTYPES if kernels.supports(dtype)]
R: list[Any] = [
    *range(9),
    Schedule.linear(4, -1),
    Schedule.per_layer([8, 0, 1]),
    [0, 8, 3, 3, 1, 0, 8, 5],
]


@pytest.mark.parametrize(
    "variant",
    [
        "class-token",
        "distilled",
        "registers",
        "average-no-prefix",
        "gated",
        "layer-scale",
        "qk-norm",
        "swiglu-packed",
    ],
)
@pytest.mark.parametrize(
    "width", [16, 32]
)  # heads of 8, which the kernels do not support, and of 16
@pytest.mark.parametrize("merging", RULE_NAMES)
@torch.no_grad()
def test_results_in_float32_are_the_same(variant: str, width: int, merging: RuleName) -> None:
    vit = make_vit(dtype=torch.float32, **{**VARIANTS[variant], "embed_dim": width})
    model = patch(vit, merging=merging)
    fast = optimize(model)
    images = make_images(8, dtype=torch.float32)
    for r in R:
        expected = model.trace(images, r=r)
        trace = fast.trace(images, r=r)
        torch.testing.assert_close(fast(images, r=r), expected.logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(
            fast.embed(images, r=r), model.embed(images, r=r), rtol=0, atol=1e-4
        )
        torch.testing.assert_close(trace.logits, expected.logits, rtol=0, atol=1e-4)
        assert torch.equal(trace.source, expected.source)


@torch.no_grad()
def test_the_options_of_patch_are_kept() -> None:
    model = patch(make_vit(dtype=torch.float32), prop_attn=False)
    images = make_images(2, dtype=torch.float32)
    torch.testing.assert_close(optimize(model)(images, r=5), model(images, r=5), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_given_model_is_untouched(dtype: torch.dtype | None) -> None:
    vit = make_vit(dtype=torch.float32, drop_path_rate=0.3)
    model = patch(vit).train()
    images = make_images(2, dtype=torch.float32)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merging = model.merging
    fast = optimize(model, dtype=dtype)
    assert model.training and model.merging is merging
    assert not vit.training
    assert all(
        parameter.requires_grad and parameter.dtype == torch.float32
        for parameter in vit.parameters()
    )
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.eval()(images, r=3), patch(vit)(images, r=3))


def test_an_optimized_model_is_for_inference_only() -> None:
    fast = optimize(patch(make_vit(dtype=torch.float32, drop_path_rate=0.3)).train())
    assert not any(module.training for module in fast.modules())
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    images = make_images(2, dtype=torch.float32)
    assert torch.equal(fast(images, r=3), fast(images, r=3))
    assert not fast(images, r=3).requires_grad


@torch.no_grad()
def test_bfloat16_mostly_agrees() -> None:
    model = patch(make_vit(dtype=torch.float32))
    fast = optimize(model, dtype=torch.bfloat16)
    images = make_images(64, dtype=torch.float32)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    for r in (0, 2, 4, [0, 1, 2, 3] * 16):
        trace = fast.trace(images, r=r)
        assert trace.logits.dtype == torch.bfloat16
        assert trace.sizes[0].dtype == torch.float32
        agree = trace.logits.argmax(dim=1) == model(images, r=r).argmax(dim=1)
        assert float(agree.float().mean()) > 0.85


def test_a_model_can_be_optimized_twice() -> None:
    model = patch(make_vit(dtype=torch.float32))
    images = make_images(2, dtype=torch.float32)
    once = optimize(model)
    assert torch.equal(optimize(once)(images, r=3), once(images, r=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("merging", RULE_NAMES)
@torch.no_grad()
def test_results_do_not_depend_on_the_rest_of_the_batch(
    dtype: torch.dtype, merging: RuleName
) -> None:
    """Bit for bit: matching is a choice, so the least difference could become a large one."""
    vit = make_vit(dtype=torch.float32, embed_dim=64, img_size=32)
    fast = optimize(patch(vit, merging=merging), dtype=dtype)
    images = make_images(24, (32, 32), dtype=torch.float32)
    r = [0, 3, 8, 12] * 6
    together = fast(images, r=r)
    for batch in (1, 2, 5):
        parts = [fast(images[i : i + batch], r=r[i : i + batch]) for i in range(0, 24, batch)]
        assert torch.equal(together, torch.cat(parts))


@torch.no_grad()
def test_layers_are_replaced_where_the_processor_allows_it() -> None:
    fast = optimize(patch(make_vit(dtype=torch.float32, embed_dim=32, init_values=0.3)))
    kinds = {type(module) for module in fast.modules()}
    assert LayerScale not in kinds
    assert (nn.Linear in kinds, nn.Conv2d in kinds) == (
        not kernels.available() and not onednn_works(torch.float32),
    ) * 2
    has_plain_norms = any(issubclass(kind, nn.LayerNorm) for kind in kinds)
    assert has_plain_norms == (not kernels.available())
    assert isinstance(fast.execution.strategy, KernelStrategy) == kernels.available()


@torch.no_grad()
def test_in_place_gives_the_same_and_changes_the_model() -> None:
    vit = make_vit(dtype=torch.float32, embed_dim=32, init_values=0.3)
    images = make_images(4, dtype=torch.float32)
    model = patch(vit)
    copied = optimize(model, dtype=torch.bfloat16)
    assert optimize(model, dtype=torch.bfloat16, in_place=True) is model
    assert torch.equal(model(images, r=[0, 3, 5, 8]), copied(images, r=[0, 3, 5, 8]))
    assert vit.pos_embed.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "make",
    [*(partial(make_eva, name) for name in EVAS), *(partial(make_beit, name) for name in BEITS)],
)
@pytest.mark.parametrize("merging", RULE_NAMES)
@torch.no_grad()
def test_results_of_other_families_in_float32_are_the_same(
    make: Callable[[], Any], merging: RuleName
) -> None:
    vit = make().float()
    model = patch(vit, merging=merging)
    fast = optimize(model)
    images = make_images(3, vit.patch_embed.img_size, dtype=torch.float32)
    for r in (0, 2, [0, 2, 4]):
        expected = model.trace(images, r=r)
        trace = fast.trace(images, r=r)
        assert torch.equal(trace.source, expected.source)
        torch.testing.assert_close(trace.logits, expected.logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(fast(images, r=r), expected.logits, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(
    not kernels.available(), reason="rows are independent bit for bit in the kernels alone"
)
@pytest.mark.parametrize(
    ("variant", "leading"),
    [
        ("class-token", 1),
        ("distilled", 2),
        ("registers", 1),
        ("average-of-patches", None),
        ("attention-pool", None),
    ],
)
@torch.no_grad()
def test_the_last_block_computes_only_what_the_head_reads(
    variant: str, leading: int | None
) -> None:
    fast = optimize(patch(make_vit(dtype=torch.float32, **{**VARIANTS[variant], "embed_dim": 32})))
    assert fast.adapter.leading == leading
    fast.encoder = None
    rows: list[int] = []
    fast.get_submodule("blocks.2.norm2").register_forward_hook(
        lambda module, args, out: rows.append(len(out))
    )
    images = make_images(8, dtype=torch.float32)
    for r in R:
        rows.clear()
        whole = fast.outputs(images, r=r, source=True)
        left = sum(len(image) for image in fast.trace(images, r=r).tokens)
        assert rows == [left] * 2
        rows.clear()
        assert torch.equal(fast(images, r=r), whole.logits)
        assert rows == [left if leading is None else 8 * leading]
        assert torch.equal(fast.embed(images, r=r), whole.features)


@pytest.mark.skipif(not kernels.available(), reason="only the kernels run all blocks at once")
@pytest.mark.parametrize(
    "options",
    [
        *(
            {**VARIANTS[name], "embed_dim": 32}
            for name in ("class-token", "distilled", "registers", "layer-scale")
        ),
        {**VARIANTS["average-with-prefix"], "embed_dim": 32, "depth": 1},
        {"embed_dim": 48, "num_heads": 1, "mlp_ratio": 4.0},
    ],
)
@pytest.mark.parametrize("prop_attn", [True, False])
@pytest.mark.parametrize("merging", RULE_NAMES)
@pytest.mark.parametrize("dtype", KERNEL_DTYPES)
@torch.no_grad()
def test_all_blocks_at_once_are_the_blocks_one_by_one(
    options: dict[str, Any], prop_attn: bool, merging: RuleName, dtype: torch.dtype
) -> None:
    plain = make_vit(dtype=torch.float32, **{**options, "img_size": 32})
    fast = optimize(patch(plain, merging=merging, prop_attn=prop_attn), dtype)
    images = make_images(8, (32, 32), dtype=torch.float32)
    for r in R if len(plain.blocks) == 3 else [0, 9]:
        at_once = fast.trace(images, r=r)
        logits = fast(images, r=r)
        assert torch.equal(at_once.logits, logits)
        encoder = fast.encoder
        fast.encoder = None
        assert encoder is not None
        one_by_one = fast.trace(images, r=r)
        fast.encoder = encoder
        if dtype == torch.float32:  # the same bits; in bfloat16 a residual is rounded once less
            assert torch.equal(at_once.logits, one_by_one.logits)
            assert torch.equal(at_once.source, one_by_one.source)
            for name in ("tokens", "sizes"):
                torch.testing.assert_close(
                    getattr(at_once, name), getattr(one_by_one, name), rtol=0, atol=0
                )
    with torch.inference_mode():
        assert torch.equal(fast(images, r=5), fast(images, r=5))


@pytest.mark.skipif(not kernels.available(), reason="only the kernels run all blocks at once")
@torch.no_grad()
def test_copies_and_other_default_dtypes_give_the_same() -> None:
    """A copy has weights at other addresses; what the kernels are given has the type that they
    read.
    """
    model = patch(make_vit(dtype=torch.float32, embed_dim=32))
    images = make_images(3, dtype=torch.float32)
    fast = optimize(model)
    expected = fast(images, r=3)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):  # noqa: S301
        assert copied.encoder is not None
        assert torch.equal(copied(images, r=3), expected)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            assert torch.equal(fast(images, r=3), expected)
            torch.testing.assert_close(optimize(model)(images, r=3), expected, rtol=0, atol=1e-5)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.skipif(not kernels.available(), reason="only the kernels run all blocks at once")
def test_layers_of_another_dtype_or_shape_run_one_by_one() -> None:
    vit = make_vit(dtype=torch.float32, embed_dim=32)
    vit.blocks[1].attn.qkv.to(torch.bfloat16)
    assert optimize(patch(vit)).encoder is None
    vit = make_vit(dtype=torch.float32, embed_dim=32)
    vit.blocks[1].mlp = Mlp(32, 48)
    assert optimize(patch(vit)).encoder is None


def test_what_the_head_reads_is_determined_in_each_call() -> None:
    """With gradients that are not wanted, without blocks, and after another pooling was chosen."""
    images = make_images(3, dtype=torch.float32)
    vit = make_vit(dtype=torch.float32, embed_dim=32, qk_norm=True)
    vit.set_grad_checkpointing(True)
    model = patch(vit)
    fast = optimize(model)
    torch.testing.assert_close(fast(images, r=3), model(images, r=3), rtol=0, atol=1e-4)
    networks: list[Any] = [fast.adapter.network, model.adapter.network]
    for network in networks:
        network.global_pool = "avg"
    torch.testing.assert_close(fast(images, r=3), model(images, r=3), rtol=0, atol=1e-4)
    model = patch(make_vit(dtype=torch.float32, embed_dim=32, depth=0))
    torch.testing.assert_close(optimize(model)(images), model(images), rtol=0, atol=1e-4)


@pytest.mark.skipif(not kernels.available(), reason="only the kernels run all blocks at once")
@pytest.mark.parametrize(
    "variant",
    [
        "qk-norm",
        "gated",
        "swiglu",
        "attention-norm",
        "post-norm",
        "wide-heads",
        "differential",
        "rms-norm",
    ],
)
def test_blocks_with_other_parts_run_one_by_one(variant: str) -> None:
    assert (
        optimize(
            patch(make_vit(dtype=torch.float32, **{**VARIANTS[variant], "embed_dim": 32}))
        ).encoder
        is None
    )


@pytest.mark.skipif(not kernels.available(), reason="only the kernels run all blocks at once")
@torch.no_grad()
def test_other_ways_of_merging_run_one_by_one() -> None:
    model = patch(make_vit(dtype=torch.float32, embed_dim=32), matcher=Kth(3))
    images = make_images(3, dtype=torch.float32)
    fast = optimize(model)
    assert fast.encoder is not None
    for r in R[:-1]:
        torch.testing.assert_close(fast(images, r=r), model(images, r=r), rtol=0, atol=1e-4)


@torch.no_grad()
def test_tensors_given_to_hooks_of_a_plain_model_are_not_overwritten() -> None:
    """Only layers that are the transform's own are added to where they lie."""
    vit = make_vit(dtype=torch.float32)
    seen: list[torch.Tensor] = []
    vit.blocks[0].mlp.fc2.register_forward_hook(
        lambda module, args, out: seen.extend((out, out.clone()))
    )
    patch(vit)(make_images(2, dtype=torch.float32), r=3)
    assert torch.equal(*seen)


@torch.no_grad()
def test_images_of_other_channels_are_an_error() -> None:
    fast = optimize(patch(make_vit(dtype=torch.float32)))
    for channels in (1, 4):
        with pytest.raises((ValueError, RuntimeError)):
            fast(torch.randn(2, channels, 16, 16), r=3)


@pytest.mark.parametrize("variant", ["class-token", "registers"])
@torch.no_grad()
def test_patches_by_a_matrix_product_are_those_of_the_convolution(variant: str) -> None:
    vit = make_vit(**VARIANTS[variant])
    images = make_images(3)
    expected = vit.patch_embed(images)
    replace_convolutions(vit)
    assert type(vit.patch_embed.proj) is MatrixPatches
    torch.testing.assert_close(vit.patch_embed(images), expected, rtol=1e-10, atol=1e-10)
    # What is left at the right and at the bottom belongs to no patch.
    larger = make_images(2, (19, 22))
    convolution = nn.Conv2d(3, 5, (4, 6), (4, 6)).double()
    expected = convolution(larger)
    torch.testing.assert_close(MatrixPatches(convolution)(larger), expected, rtol=1e-10, atol=1e-10)
