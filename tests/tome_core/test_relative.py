"""Models with relative positions: exact at r=0, and a merged token has the position of its
destination.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import RelPosBias, RelPosMlp, SwiGLU
from timm.models.beit import Beit
from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
from torch.utils.flop_counter import FlopCounterMode

from tests.tome_core import oracle
from tests.tome_core.models import CLASSES, as_schedule, make_images, randomise, specs
from tests.tome_core.oracle import Spec
from tests.tome_core.oracle_layers import Bias, Vector, array, linear, sigmoid
from tome_core import UnsupportedModelError, optimize, patch
from tome_core.attention import explicit_attention
from tome_core.backends.reference import ReferenceStrategy
from tome_core.execution import Execution
from tome_core.rules import RULE_NAMES, RuleName

BEITS: dict[str, dict[str, Any]] = {
    "beit": {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "init_values": 0.3},
    "beit-shared": {"use_shared_rel_pos_bias": True},
    "beit-both": {
        "use_rel_pos_bias": True,
        "use_shared_rel_pos_bias": True,
        "global_pool": "token",
    },
    "beit-absolute": {"qkv_bias": False, "mlp_ratio": 3.0},
    "beit-average-before-norm": {"use_rel_pos_bias": True, "use_fc_norm": False, "scale_mlp": True},
}
RELPOS: dict[str, dict[str, Any]] = {
    "relpos": {"fc_norm": True, "init_values": 0.3},
    "relpos-table": {"rel_pos_type": "bias", "qk_norm": True},
    "relpos-table-class": {"rel_pos_type": "bias", "class_token": True, "global_pool": "token"},
    "relpos-swin": {"rel_pos_type": "mlp_swin", "init_values": None},
    "relpos-shared": {"shared_rel_pos": True, "rel_pos_dim": 8, "qkv_bias": False},
    "relpos-class": {"class_token": True, "global_pool": "token", "rel_pos_dim": 8},
    "relpos-class-average": {
        "class_token": True,
        "rel_pos_type": "mlp_swin",
        "shared_rel_pos": True,
    },
    "relpos-post-norm": {"block_fn": ResPostRelPosBlock},
}
NAMES = sorted({**BEITS, **RELPOS})


def make(name: str, seed: int = 0, grid: tuple[int, int] = (4, 3), **options: Any) -> Any:
    model_type = Beit if name in BEITS else VisionTransformerRelPos
    shape = {
        "img_size": (4 * grid[0], 4 * grid[1]),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 3,
        "num_heads": 2,
    }
    vit = model_type(
        **{
            **shape,
            "mlp_ratio": 2.0,
            "num_classes": CLASSES,
            **{**BEITS, **RELPOS}[name],
            **options,
        }
    )
    randomise(vit, seed)
    with torch.no_grad():
        for part, parameter in vit.named_parameters():  # biases must decide what is attended to
            if "bias_table" in part or "rel_pos" in part:
                parameter.mul_(5)
    return vit.double().eval()


def from_table(table: Vector, grid: tuple[int, int], prefix: int) -> Callable[[int, int], Vector]:
    """A learned bias for each distance (BEiT, section 2.1; Swin, section 3.2), and three for the
    class token.
    """

    def bias(query: int, key: int) -> Vector:
        if query < prefix or key < prefix:
            return table[-1 if max(query, key) < prefix else -3 if query < prefix else -2]
        down, right = _distance(query - prefix, key - prefix, grid)
        return table[(down + grid[0] - 1) * (2 * grid[1] - 1) + right + grid[1] - 1]

    return bias


def from_mlp(module: Any, grid: tuple[int, int], prefix: int) -> Callable[[int, int], Vector]:
    """A bias that an MLP computes from the logarithm of the distance (Swin v2, section 3.3); none
    for class tokens.
    """

    def bias(query: int, key: int) -> Vector:
        if query < prefix or key < prefix:
            return np.zeros(module.num_heads)
        distance = _distance(query - prefix, key - prefix, grid)
        place = array(module.rel_coords_log)[distance[0] + grid[0] - 1, distance[1] + grid[1] - 1]
        np.testing.assert_allclose(
            place, [_log(d, n, module.mode) for d, n in zip(distance, grid, strict=True)], 1e-6
        )
        out = linear(module.mlp.fc2, np.maximum(linear(module.mlp.fc1, place), 0))
        return 16 * sigmoid(out) if module.mode == "swin" else out

    return bias


def _distance(query: int, key: int, grid: tuple[int, int]) -> tuple[int, int]:
    return query // grid[1] - key // grid[1], query % grid[1] - key % grid[1]


def _log(distance: int, side: int, mode: str) -> float:
    if mode == "swin":
        return float(np.sign(distance) * np.log2(1 + abs(8 * distance / (side - 1))) / 3)
    return float(np.sign(distance) * np.log(1 + abs(distance)))


def expected(
    vit: Any, image: Vector, spec: Spec, prop_attn: bool = True, merging: RuleName = "paper"
) -> oracle.Result:
    """What the oracle makes of the model."""
    grid = vit.patch_embed.grid_size
    prefix = vit.num_prefix_tokens

    def sources(block: Any) -> list[Callable[[int, int], Vector]]:
        if isinstance(vit, Beit):
            holders = [holder for holder in (vit.rel_pos_bias, block.attn) if holder is not None]
            tables = [holder.relative_position_bias_table for holder in holders]
            return [from_table(array(table), grid, prefix) for table in tables if table is not None]
        module = vit.shared_rel_pos or block.attn.rel_pos
        if isinstance(module, RelPosBias):
            return [from_table(array(module.relative_position_bias_table), grid, prefix)]
        assert isinstance(module, RelPosMlp)
        return [from_mlp(module, grid, prefix)]

    def bias(block: Any, places: list[int]) -> Bias:
        terms = sources(block)
        pairs = [[[term(query, key) for term in terms] for key in places] for query in places]
        return [
            [[float(sum(term[head] for term in pair)) for pair in row] for row in pairs]
            for head in range(block.attn.num_heads)
        ]

    return oracle.forward(vit, image, spec, prop_attn, bias, merging=merging)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_is_timm_at_r_0(name: str) -> None:
    vit = make(name)
    images = make_images(3, (16, 12))
    model = patch(vit)
    features = vit.forward_features(images)
    for r in (0, [0, 0, 0]):
        torch.testing.assert_close(model(images, r=r), vit(images), rtol=1e-10, atol=1e-10)
        pooled = vit.forward_head(features, pre_logits=True)
        torch.testing.assert_close(model.embed(images, r=r), pooled, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            model.trace(images, r=r).tokens, features, rtol=1e-10, atol=1e-10
        )
    torch.testing.assert_close(optimize(model)(images), vit(images), rtol=1e-9, atol=1e-9)
    assert list(model.state_dict()) == list(vit.state_dict())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("merging", RULE_NAMES)
@torch.no_grad()
def test_every_model_equals_the_oracle(name: str, r: int, merging: RuleName) -> None:
    vit = make(name, seed=r)
    (image,) = images = make_images(1, (16, 12))
    model = patch(vit, merging=merging)
    oracles = expected(vit, image.numpy(), r, merging=merging)
    trace = model.trace(images, r=r, residual=True)
    assert not torch.allclose(trace.logits, vit(images), atol=1e-6), (
        "merging must matter, or this proves nothing"
    )
    assert trace.source[0].tolist() == oracles.source
    unmerged = vit.norm(torch.from_numpy(oracles.unmerged[-1]))
    torch.testing.assert_close(trace.unmerge()[0], unmerged, rtol=1e-9, atol=1e-9)
    for logits in (trace.logits, optimize(model)(images, r=r)):
        torch.testing.assert_close(
            logits[0], torch.from_numpy(oracles.logits), rtol=1e-9, atol=1e-9
        )


@settings(max_examples=30)
@given(st.sampled_from(NAMES), specs(), st.booleans(), st.integers(0, 2**31))
def test_any_schedule_equals_the_oracle(name: str, spec: Spec, prop_attn: bool, seed: int) -> None:
    vit = make(name, seed, grid=(2, 4))
    (image,) = images = make_images(1, (8, 16), seed)
    with torch.no_grad():
        logits = patch(vit, prop_attn=prop_attn)(images, r=as_schedule(spec))[0]
    of_oracle = torch.from_numpy(expected(vit, image.numpy(), spec, prop_attn).logits)
    torch.testing.assert_close(logits, of_oracle, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_mixed_schedules_equal_single_images(name: str) -> None:
    images = make_images(5, (16, 12))
    model = patch(make(name))
    schedules: list[Any] = [0, 3, as_schedule((2, -1.0)), 40, 3]
    alone = torch.cat([model(images[i : i + 1], r=schedules[i]) for i in range(5)])
    for mixed in (model, optimize(model)):
        torch.testing.assert_close(mixed(images, r=schedules), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["relpos", "relpos-shared", "relpos-class"])
@torch.no_grad()
def test_another_input_size_is_set_before_patching(name: str) -> None:
    vit = make(name)
    model = patch(vit)
    vit.set_input_size((12, 20))
    images = make_images(2, (12, 20))
    torch.testing.assert_close(patch(vit)(images), vit(images), rtol=1e-10, atol=1e-10)
    with pytest.raises(AssertionError, match="height"):
        model(images)


@pytest.mark.parametrize("name", ["beit-both", "relpos", "relpos-shared", "relpos-table-class"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(name: str, checkpointing: bool) -> None:
    vit = make(name, init_values=0.3).train()
    vit.set_grad_checkpointing(checkpointing)
    model = patch(vit)
    model(make_images(2, (16, 12)), r=[2, 3]).square().sum().backward()
    missing = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all()
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["beit", "beit-shared", "relpos", "relpos-shared", "relpos-table"])
@torch.no_grad()
def test_macs_equal_the_flops_that_pytorch_counts(name: str) -> None:
    model = patch(make(name).float())
    images = make_images(1, (16, 12), dtype=torch.float32)
    # PyTorch counts explicit products on every device, and its fused kernel on some.
    model.execution = Execution(ReferenceStrategy(explicit_attention))
    for r in (0, 3):
        with FlopCounterMode(display=False) as counter:
            model(images, r=r)
        tokens = model.token_counts(r, 12 + model.merging.prefix)
        assert counter.get_total_flops() == 2 * model.cost().macs(tokens)


def test_a_beit_with_swiglu_is_timm_at_r_0() -> None:
    vit = Beit(
        img_size=16,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
        use_rel_pos_bias=True,
        num_classes=3,
    )
    vit.blocks[0].mlp = SwiGLU(16, 24)
    randomise(vit)
    images = make_images(2)
    torch.testing.assert_close(
        patch(vit.double().eval())(images), vit(images), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("beit-shared", "rel_pos_bias"),
        ("relpos", "blocks.1.attn.rel_pos"),
        ("beit", "blocks.1"),
        ("beit", "blocks.1.attn"),
        ("relpos-shared", "shared_rel_pos"),
    ],
)
def test_hooks_and_unknown_attributes_are_refused(name: str, path: str) -> None:
    vit = make(name)
    vit.get_submodule(path).register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedModelError, match="hooks"):
        patch(vit)
    vit = make(name)
    vit.get_submodule(path).novelty = 3
    with pytest.raises(UnsupportedModelError, match="novelty"):
        patch(vit)


@pytest.mark.parametrize("name", ["beit", "relpos"])
def test_blocks_that_differ_are_refused(name: str) -> None:
    vit = make(name)
    other = make(name, grid=(3, 4))
    vit.blocks[1] = other.blocks[1]
    with pytest.raises(UnsupportedModelError, match="differ"):
        patch(vit)
    vit = make("relpos")
    vit.blocks[2].attn.rel_pos = None
    with pytest.raises(UnsupportedModelError, match="missing part"):
        patch(vit)
