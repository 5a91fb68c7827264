"""The embedding by the kernels compared with timm's."""

from __future__ import annotations

import copy
from multiprocessing.reduction import ForkingPickler
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from tests.fake_cuda import needs_fake_cuda
from tests.tome_core.backends.cuda.compiler import compile_in_process
from tests.tome_core.backends.cuda.device import DEVICE
from tests.tome_core.backends.cuda.test_encoder import Launches
from tests.tome_core.clips import make_video_vit
from tests.tome_core.models import make_vit
from tome_core import MergedViT, Pixels, Schedule, patch
from tome_core.adapters.inference import replace_convolutions
from tome_core.adapters.plain import embedding_weights
from tome_core.backends.cuda.embedding import (
    EmbeddingWeights,
    TritonEmbedding,
    assemble,
    launch_assemble,
)
from tome_core.backends.cuda.launch_config import LaunchConfig
from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.optimizing import embedding_for_gpu

MODELS: dict[str, dict[str, Any]] = {
    "class-token": {},
    "no-prefix": {"class_token": False, "global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "registers-only": {"class_token": False, "reg_tokens": 3, "global_pool": "avg"},
    "no-embed-class": {"no_embed_class": True, "reg_tokens": 2},
    "distilled": {"distilled": True},
    "pre-norm": {"pre_norm": True},
    "patches-of-14": {"img_size": (28, 42), "patch_size": 14},
    "patches-of-16": {"img_size": (48, 32), "patch_size": 16, "embed_dim": 24},
    "patches-of-4-by-8": {
        "img_size": (18, 33),
        "patch_size": (4, 8),
    },  # what is no whole patch is left out
    "dropout-in-training": {"pos_drop_rate": 0.3, "patch_drop_rate": 0.3},
    "tubelets": {"frames": 4, "class_token": True},
    "tubelets-alone": {"frames": 3, "tubelet": 1, "img_size": (16, 24), "patch_size": (8, 4)},
}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    "norm-of-patches": {"embed_norm_layer": torch.nn.LayerNorm},
    "no-positions": {"pos_embed": "none"},
    "any-size": {"dynamic_img_size": True},
    "padded": {"dynamic_img_pad": True},
    "float64": {"dtype": torch.float64},
}
SCALE = [1 / 60, 1 / 70, 1 / 80]
SHIFT = [-2.0, -1.75, -1.5]


def make(dtype: torch.dtype = torch.float32, **options: Any) -> MergedViT:
    """A model as `optimize` prepares it for a GPU, before it adds the embedding."""
    make_network = make_video_vit if "frames" in options else make_vit
    model = patch(make_network(dtype=dtype, **options).to(DEVICE)).requires_grad_(False)
    replace_convolutions(model.adapter.network)
    return model


def make_with_embedding(dtype: torch.dtype = torch.float32, **options: Any) -> MergedViT:
    model = make(dtype, **options)
    model.embedding = embedding_for_gpu(model)
    assert model.embedding is not None
    return model


def pixels_for(model: MergedViT, batch: int = 3) -> Pixels:
    network: Any = model.adapter.network
    size = network.patch_embed.img_size
    values = torch.randint(
        0, 256, (batch, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    scale, shift = (torch.tensor(numbers, device=DEVICE) for numbers in (SCALE, SHIFT))
    return Pixels(values.to(DEVICE), scale, shift)


def embed_plainly(model: MergedViT, images: Tensor) -> Tensor:
    network: Any = model.adapter.network
    return network.norm_pre(network._pos_embed(network.patch_embed(images)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("variant", MODELS)
@torch.no_grad()
def test_equals_the_plain_network(variant: str, dtype: torch.dtype) -> None:
    model = make_with_embedding(dtype, **MODELS[variant])
    pixels = pixels_for(model)
    expected = embed_plainly(model, pixels.normalised().to(dtype))
    assert model.embedding is not None
    for images in (
        pixels,
        pixels.normalised(),
        pixels.normalised().to(memory_format=torch.channels_last),
    ):
        assert model.embedding.supports(images)
        result = model.embedding(images)
        assert result.shape == expected.shape
        assert result.dtype == dtype
        # A normalised pixel may differ in its last bit.
        torch.testing.assert_close(
            result, expected, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=2e-3
        )
    assert model.input_tokens(pixels) == expected.shape[1]
    assert model.patch_grid(pixels) == model.patch_grid(pixels.normalised())


# The interpreter truncates where a GPU rounds to bfloat16.
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
)
@pytest.mark.parametrize(
    ("prefix", "patches", "width"), [(0, 4, 16), (1, 9, 24), (5, 3, 7), (1, 3, 2000)]
)
def test_sums_are_rounded_as_in_pytorch(
    prefix: int,
    patches: int,
    width: int,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(3 * patches, width, generator=generator).to(DEVICE, dtype)
    table = torch.randn(prefix + patches, width, generator=generator).to(DEVICE, dtype)
    front = table[:prefix].expand(3, -1, -1)
    expected = torch.cat([front, embedded.view(3, patches, width) + table[prefix:]], dim=1).flatten(
        0, 1
    )
    torch.testing.assert_close(assemble(embedded, table, prefix), expected, rtol=0, atol=0)
    torch.testing.assert_close(
        launch_assemble(embedded, table, prefix, LaunchConfig(64, 1)), expected, rtol=0, atol=0
    )


@pytest.mark.parametrize("r", [0, 3, [0, 4, Schedule.per_layer([0, 5])]])
@pytest.mark.parametrize("variant", ["class-token", "tubelets"])
@torch.no_grad()
def test_the_whole_model_equals_the_reference(variant: str, r: Any) -> None:
    model = make_with_embedding(**MODELS[variant])
    reference = make(**MODELS[variant])
    pixels = pixels_for(model)
    expected = reference.outputs(pixels.normalised(), r=r, source=True)
    result = model.outputs(pixels, r=r, source=True)
    assert result.source is not None and expected.source is not None
    assert torch.equal(result.source, expected.source)
    torch.testing.assert_close(result.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model.trace(pixels, r=r).logits, expected.logits, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(model.embed(pixels, r=r), expected.features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", UNSUPPORTED)
def test_unsupported_embeddings_have_no_kernel(variant: str) -> None:
    assert embedding_for_gpu(make(**UNSUPPORTED[variant])) is None


def test_convolutions_that_are_no_matrix_product_are_rejected() -> None:
    model = make()
    network: Any = model.adapter.network
    network.patch_embed.proj = torch.nn.Conv2d(3, 16, 4, stride=4)
    assert embedding_weights(model.adapter) is None
    network.patch_embed.proj = MatrixPatches(torch.nn.Conv2d(3, 16, 2, stride=2))
    weights = embedding_weights(model.adapter)
    assert weights is not None
    assert not weights.is_supported
    with pytest.raises(ValueError, match="too few positions"):
        TritonEmbedding(weights)


def test_which_images_it_takes() -> None:
    model = make_with_embedding()
    embedding = model.embedding
    pixels = pixels_for(model)
    assert embedding is not None
    images = pixels.normalised()
    assert embedding.supports(pixels)
    assert embedding.supports(images)
    assert embedding.supports(images.double())
    assert not embedding.supports(images[:, :, 1:])
    assert not embedding.supports(images[:, :2])
    assert not embedding.supports(images.clone().requires_grad_())
    assert not embedding.supports(images.to("meta"))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert not embedding.supports(images)
    model.half()  # its weights, but not what was made of them
    assert not embedding.supports(images)


@torch.no_grad()
def test_other_calls_run_the_plain_embedding() -> None:
    model = make_with_embedding(pos_drop_rate=0.5)
    pixels = pixels_for(model)
    assert torch.equal(model(pixels), model(pixels))
    model.train()
    assert not torch.equal(model(pixels), model(pixels))
    with pytest.raises(AssertionError, match="doesn't match model"):
        model.eval()(pixels.normalised()[:, :, :12])


@torch.no_grad()
def test_copies_and_pickles_give_the_same_results() -> None:
    model = make_with_embedding(pre_norm=True)
    pixels = pixels_for(model)
    expected = model(pixels, r=3)
    assert torch.equal(copy.deepcopy(model)(pixels, r=3), expected)
    again = ForkingPickler.loads(ForkingPickler.dumps(model.embedding))
    copied = copy.deepcopy(model.embedding)
    assert copied is not None
    assert torch.equal(again(pixels), copied(pixels))


def test_assemble_is_a_valid_operator() -> None:
    embedded = torch.randn(6, 8, device=DEVICE)
    table = torch.randn(5, 8, device=DEVICE)
    torch.library.opcheck(torch.ops.tome.assemble.default, (embedded, table, 2))


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "variant", ["class-token", "no-prefix", "distilled", "patches-of-14", "tubelets"]
)
def test_three_launches_on_a_fake_gpu(variant: str, dtype: torch.dtype) -> None:
    """Runs the whole model; its embedding takes three launches."""
    model = make(**MODELS[variant]).to("cpu")
    network: Any = model.adapter.network
    size = network.patch_embed.img_size
    weights = embedding_weights(model.adapter)
    assert weights is not None
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():

        def fake(tensor: Tensor) -> Tensor:
            return torch.empty(tensor.shape, dtype=dtype, device="cuda")

        assert weights.bias is not None
        fakes = EmbeddingWeights(
            weight=fake(weights.weight),
            bias=fake(weights.bias),
            table=fake(weights.table),
            prefix=weights.prefix,
            size=weights.size,
            norm=weights.norm,
            frames=weights.frames,
        )
        model.embedding = TritonEmbedding(fakes)
        parameters = {name: fake(tensor) for name, tensor in model.named_parameters()}
        values = torch.empty(3, 3, *size, dtype=torch.uint8, device="cuda")
        pixels = Pixels(values, torch.empty(3, device="cuda"), torch.empty(3, device="cuda"))
        for images in (pixels, torch.empty(3, 3, *size, device="cuda")):
            with Launches() as launches:
                tokens = model.embedding(images)
            first, product, last = launches.names
            assert (first, last) == ("tome::patches", "tome::assemble")
            assert product in (
                "aten::linear",
                "aten::addmm",
            )  # the same launch: whether it is taken apart differs
            assert (tokens.device.type, tokens.dtype, tokens.shape) == (
                "cuda",
                dtype,
                (3, *weights.table.shape),
            )
            with Launches() as launches:
                logits = functional_call(model, parameters, (images, 3))
            assert launches.names[:3] == [first, product, last]
            assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", dtype, (3, 5))


@pytest.mark.parametrize(
    "capability", [90, *(pytest.param(other, marks=pytest.mark.slow) for other in (80, 89, 100))]
)
def test_nothing_spills_and_accesses_are_wide(capability: int) -> None:
    for compiled in compile_in_process(
        "tests.tome_core.backends.cuda.embedding_cases", [capability]
    ):
        assert compiled.stack == 0, compiled
        assert compiled.registers <= 128, compiled
        assert compiled.widest >= 128, compiled
