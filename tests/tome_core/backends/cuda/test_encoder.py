"""A whole Vision Transformer by the kernels compared with the reference model."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.clips import make_clips, make_video_vit
from tests.tome_core.models import DEPTH, as_schedule, make_images, make_vit, specs
from tests.tome_core.oracle import Spec
from tome_core import Kth, MergedViT, Schedule, patch
from tome_core.adapters.inference import fold_scales
from tome_core.adapters.plain import plain_weights
from tome_core.backends.cuda.encoder import TritonEncoder
from tome_core.matching import Bipartite
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed
from tome_core.ragged.plan import make_plan
from tome_core.rules import RULE_NAMES, RuleName

MODELS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "no-prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4, "global_pool": "avg"},
    "layer-scale": {"init_values": 0.3},
    "distilled": {"distilled": True},
    "attention-pool": {"global_pool": "map", "reg_tokens": 1},
    "no-bias": {"qkv_bias": False, "proj_bias": False},
    "pre-norm": {"pre_norm": True},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "qk-norm": {"qk_norm": True},
    "gated": {"gated": True},
    "attention-norm": {"scale_attn_norm": True},
    "mlp-norm": {"scale_mlp_norm": True},
    "wide-heads": {"attn_head_dim": 12},
    "float64": {"dtype": torch.float64},
    "another-activation": {"act_layer": torch.nn.SiLU},
}


def make_with_encoder(
    reference: MergedViT,
    *,
    prune: bool = True,
    prop_attn: bool = True,
) -> MergedViT:
    model = copy.deepcopy(reference)
    fold_scales(model.adapter.network)
    model.requires_grad_(False)
    weights = plain_weights(model.adapter)
    assert weights is not None
    model.encoder = TritonEncoder(weights)
    model.merging = replace(model.merging, prop_attn=prop_attn)
    model.execution = replace(model.execution, prune=prune)
    return model


@cache
def reference_of(variant: str, prop_attn: bool = True) -> MergedViT:
    vit = make_vit(dtype=torch.float32, embed_dim=32, **MODELS[variant]).to(DEVICE)
    return patch(vit, prop_attn=prop_attn)


@cache
def model_with_encoder(variant: str, **options: Any) -> MergedViT:
    return make_with_encoder(reference_of(variant), **options)


def images(batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return make_images(batch, dtype=dtype).to(DEVICE)


@pytest.mark.parametrize("variant", MODELS)
@settings(max_examples=2)
@given(st.lists(specs(), min_size=1, max_size=4))
@torch.no_grad()
def test_equals_the_reference(variant: str, batch: list[Spec]) -> None:
    r = [as_schedule(spec) for spec in batch]
    x = images(len(batch))
    expected = reference_of(variant)(x, r=r)
    torch.testing.assert_close(model_with_encoder(variant)(x, r=r), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["pairs", "nearest"])
@pytest.mark.parametrize("variant", ["class-token", "no-prefix", "registers"])
@torch.no_grad()
def test_pairs_equal_the_reference(variant: str, name: RuleName) -> None:
    paper = reference_of(variant)
    reference = MergedViT(paper.adapter, paper.merging.with_rule(name), paper.execution).eval()
    model = make_with_encoder(reference)
    r: list[int | Schedule] = [3, 0, Schedule.per_layer([0, 5])]
    torch.testing.assert_close(
        model(images(3), r=r), reference(images(3), r=r), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_forward_features_with_and_without_pruning() -> None:
    r: list[int | Schedule] = [0, 3, Schedule.per_layer([0, 5])]
    x = images(3)
    expected = reference_of("class-token").forward_features(x, r=r)
    for prune in (True, False):
        model = model_with_encoder("class-token", prune=prune)
        for one, other in zip(model.forward_features(x, r=r), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            model(x, r=r), reference_of("class-token")(x, r=r), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("global_pool", ["avg", "token"])
@torch.no_grad()
def test_clips_equal_the_reference(global_pool: str) -> None:
    vit = make_video_vit(
        dtype=torch.float32, embed_dim=32, class_token=True, global_pool=global_pool
    )
    reference = patch(vit.to(DEVICE))
    clips = make_clips(3, dtype=torch.float32).to(DEVICE)
    r = [0, 3, Schedule.linear(2, -1)]
    torch.testing.assert_close(
        make_with_encoder(reference)(clips, r=r), reference(clips, r=r), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_without_proportional_attention() -> None:
    reference = reference_of("no-prefix", prop_attn=False)
    model = make_with_encoder(reference, prop_attn=False)
    torch.testing.assert_close(
        model(images(2), r=[3, 5]), reference(images(2), r=[3, 5]), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_result_is_independent_of_the_other_images() -> None:
    """Equal within rounding: PyTorch's linear layers may round differently for other row counts."""
    model = model_with_encoder("class-token", prune=False)
    x = images(3)
    together = model(x, r=[4, 0, 2])
    for index, r in enumerate((4, 0, 2)):
        torch.testing.assert_close(
            model(x[index : index + 1], r=r)[0], together[index], rtol=1e-5, atol=1e-5
        )


@torch.no_grad()
def test_float16_is_as_exact_as_the_reference() -> None:
    """The error is of the order of the rounding error of the reference itself."""
    vit = make_vit(dtype=torch.float16, embed_dim=32).to(DEVICE)
    reference = patch(vit)
    x = images(4, torch.float16)
    expected = patch(make_vit(dtype=torch.float64, embed_dim=32).to(DEVICE))(x.double(), r=3)
    error = (make_with_encoder(reference)(x, r=3).double() - expected).abs().max()
    assert error <= 3 * (reference(x, r=3).double() - expected).abs().max() + 1e-3


def test_which_calls_it_takes() -> None:
    model = model_with_encoder("class-token")
    encoder = model.encoder
    assert encoder is not None
    tokens = torch.zeros(8, 32, device=DEVICE)
    places = (torch.arange(8, device=DEVICE)[None],)
    plan = make_plan([Schedule.of(0)], DEPTH, 8, 1, Bipartite())
    context = BlockContext(model.merging, plan, 0, Packed(tokens, (None,), None))
    assert encoder.supports(context)
    for name in RULE_NAMES:
        assert encoder.supports(replace(context, merging=model.merging.with_rule(name)))

    for packed in (
        replace(context.packed, sources=places),
        replace(context.packed, positions=places),
        replace(context.packed, tokens=tokens.double()),
        replace(context.packed, tokens=tokens.clone().requires_grad_()),
    ):
        assert not encoder.supports(replace(context, packed=packed))

    for merging in (
        replace(model.merging, matcher=Kth(2)),
        replace(model.merging, combine=lambda tokens, sizes, matching, length: (tokens, sizes)),
        replace(model.merging, metric=lambda features: features.after),
    ):
        assert not encoder.supports(replace(context, merging=merging))


@pytest.mark.parametrize("variant", UNSUPPORTED)
def test_unsupported_blocks_are_rejected(variant: str) -> None:
    model = patch(make_vit(**{"dtype": torch.float32, "embed_dim": 32, **UNSUPPORTED[variant]}))
    weights = plain_weights(model.adapter)
    if weights is not None:
        with pytest.raises(ValueError, match="not all of one width and dtype"):
            TritonEncoder(weights)


@torch.no_grad()
def test_copies_and_pickles_give_the_same_results() -> None:
    model = model_with_encoder("class-token")
    expected = model(images(2), r=3)
    assert torch.equal(copy.deepcopy(model)(images(2), r=3), expected)
    again = ForkingPickler.loads(ForkingPickler.dumps(model.encoder))
    last: Any = model.adapter.blocks[-1]
    assert torch.equal(again.weights[-1].fc2.weight, last.block.mlp.fc2.weight)


class Launches(TorchDispatchMode):
    """Records the operators that would launch kernels on a GPU; views launch none."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        out = func(*args, **(kwargs or {}))
        if not func.is_view and not name.startswith("prim::"):
            self.names += [name] * (2 if name == "tome::match" else 1)
        return out


@pytest.mark.parametrize("r", [0, 2, [0, 2, 2]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_on_a_fake_gpu(r: Any, dtype: torch.dtype) -> None:
    """The host never waits for the device, and the number of launches is as documented."""
    model = copy.deepcopy(reference_of("class-token")).to("cpu")
    weights = plain_weights(model.adapter)
    assert weights is not None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():

        def fake(value: Any) -> Any:
            if isinstance(value, Tensor):
                return torch.empty(value.shape, dtype=dtype, device="cuda")
            if isinstance(value, tuple):
                return (
                    type(value)(*map(fake, value))
                    if hasattr(value, "_fields")
                    else tuple(map(fake, value))
                )
            return value

        fakes = [
            type(block)(*(fake(getattr(block, name)) for name in block.__dataclass_fields__))
            for block in weights
        ]
        encoder = TritonEncoder(fakes)
        schedules = tuple(map(Schedule.of, r if isinstance(r, list) else [r] * 3))
        plan = make_plan(schedules, DEPTH, 17, 1, Bipartite())
        tokens = torch.empty(3 * 17, 32, dtype=dtype, device="cuda")
        packed = Packed(tokens, (None,) * len(plan.groups), None)
        with Launches() as launches:
            out = encoder(BlockContext(model.merging, plan, 0, packed), None)
    assert out.tokens.shape == (plan.length(DEPTH), 32)
    assert (out.tokens.device.type, out.tokens.dtype) == ("cuda", dtype)
    if r:
        assert [tuple(sizes.shape) for sizes in out.sizes if sizes is not None] == [
            (group.images, group.tokens[-1]) for group in plan.groups
        ]
    a_block = 7 + 2 * bool(r) + (dtype == torch.float32)  # in which GELU is a separate launch
    first = launches.names.index("tome::norm")
    assert len(launches.names[first:]) == a_block * DEPTH + 1, launches.names
