"""What `optimize` chooses for a GPU, on fake tensors that have a device, dtype and shape only.

A value that the host would have to wait for raises `DataDependentOutputException`, and so does a
tensor that is left on the CPU. The results of real kernels cannot be tested in this way. The server
checks them on its own GPU (self check).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call

from tests.fake_cuda import needs_fake_cuda
from tests.tome_core.backends.test_padded import with_positions
from tests.tome_core.clips import FRAMES as FRAMES_OF_CLIP
from tests.tome_core.clips import HEIGHT, WIDTH, make_video_vit
from tests.tome_core.models import CLASSES, make_vit
from tests.tome_core.spectrograms import FRAMES, MEL_BINS, make_ast
from tests.tome_core.vjepa2 import make_vjepa2
from tome_core import MergedViT, Outputs, Schedule, Trace, patch
from tome_core.adapters.inference import fold_scales, replace_convolutions
from tome_core.backends.padded import PaddedStrategy
from tome_core.backends.patch_embedding import MatrixPatches
from tome_core.execution import Execution
from tome_core.metric import BlockTensors
from tome_core.optimizing import execution_for
from tome_core.ragged.context import BlockContext
from tome_core.ragged.packed import Packed

pytestmark = needs_fake_cuda

MODELS: dict[str, dict[str, Any]] = {
    "token": {"init_values": 0.1},
    "average": {"class_token": False, "global_pool": "avg"},
    "attention": {"global_pool": "map", "reg_tokens": 4},
    "distilled": {"distilled": True},
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MIXED: list[list[Any]] = [
    [0, 3, 8, 3],
    [1, 2, 3, 4],
    [Schedule.linear(4, -1), 0, Schedule.per_layer([8, 0, 1]), 8],
]


def for_cuda(model: MergedViT, dtype: torch.dtype) -> MergedViT:
    """What `optimize` makes of ``model`` on a GPU, but for the device of its weights."""
    fold_scales(model.adapter.network)
    replace_convolutions(model.adapter.network)
    execution = execution_for("cuda", dtype)
    return MergedViT(model.adapter, model.merging, execution).eval().requires_grad_(False)


def run(
    model: MergedViT,
    dtype: torch.dtype,
    r: Any,
    image_shape: tuple[int, int, int] = (3, 16, 16),
) -> Any:
    """``model`` on four fake images, with weights of ``dtype`` on a fake GPU."""
    with FakeTensorMode(), torch.inference_mode():
        weights = {
            name: torch.empty(
                tensor.shape,
                dtype=dtype if tensor.is_floating_point() else tensor.dtype,
                device="cuda",
            )
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        }
        images = torch.empty(4, *image_shape, device="cuda")
        return functional_call(
            Both(model), {f"model.{name}": tensor for name, tensor in weights.items()}, (images, r)
        )


class Both(torch.nn.Module):
    def __init__(self, model: MergedViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, r: Any) -> tuple[Outputs, Trace]:
        outputs = self.model.outputs(images, r=r, source=True)
        return outputs, self.model.trace(images, r=r, residual=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", MODELS)
def test_every_r_and_mixed_batches_run_on_the_gpu(variant: str, dtype: torch.dtype) -> None:
    model = for_cuda(patch(make_vit(dtype=torch.float32, **MODELS[variant])), dtype)
    assert model.execution.strategy == PaddedStrategy()
    for r in [*range(9), *MIXED]:
        outputs, trace = run(model, dtype, r)
        for tensor, shape in ((outputs.logits, (4, CLASSES)), (trace.logits, (4, CLASSES))):
            assert (tensor.device.type, tensor.dtype, tensor.shape) == ("cuda", dtype, shape)
        assert (outputs.features.device.type, outputs.features.dtype) == ("cuda", dtype)
        for image in range(4):
            image_r = r if isinstance(r, int) else r[image]
            left = model.token_counts(image_r, 16 + model.merging.prefix)[-1]
            assert trace.tokens[image].shape == (left, 16) and trace.tokens[image].dtype == dtype
            assert trace.sizes[image].shape == (left,) and trace.sizes[image].dtype == torch.float32
            assert trace.sizes[image].device.type == trace.tokens[image].device.type == "cuda"
        for source in (outputs.source, trace.source):
            assert source is not None
            assert (source.device.type, source.dtype) == ("cuda", torch.int64)
            assert source.shape == (4, 16 + model.merging.prefix)
        assert trace.unmerged is not None
        assert (trace.unmerged.device.type, trace.unmerged.dtype) == ("cuda", dtype)
        assert trace.unmerged.shape == (4, 16 + model.merging.prefix, 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spectrograms_run_on_the_gpu(dtype: torch.dtype) -> None:
    model = for_cuda(patch(make_ast(dtype=torch.float32)), dtype)
    embedding: Any = model.adapter.network.patch_embed
    assert isinstance(embedding.proj, MatrixPatches)
    for r in (0, 4, [0, 3, 1, 3]):
        outputs, _ = run(model, dtype, r, (1, MEL_BINS, FRAMES))
        logits = outputs.logits
        assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", dtype, (4, CLASSES))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clips_run_on_the_gpu(dtype: torch.dtype) -> None:
    model = for_cuda(patch(make_video_vit(dtype=torch.float32, class_token=True)), dtype)
    for r in (0, 4, [0, 3, 1, 3]):
        outputs, _ = run(model, dtype, r, (3, FRAMES_OF_CLIP * HEIGHT, WIDTH))
        logits = outputs.logits
        assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", dtype, (4, CLASSES))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_v_jepa_2_and_its_pooler_run_on_the_gpu(dtype: torch.dtype) -> None:
    vit = make_vjepa2(dtype=torch.float32)
    model = for_cuda(patch(vit), dtype)
    for r in (0, 4, [0, 3, 1, 3]):
        outputs, _ = run(model, dtype, r, (3, *vit.patch_embed.img_size))
        logits = outputs.logits
        assert (logits.device.type, logits.dtype, logits.shape) == ("cuda", dtype, (4, CLASSES))


@pytest.mark.parametrize("kind", ["rotary", "relative"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary_and_relative_positions_run_on_the_gpu(kind: str, dtype: torch.dtype) -> None:
    model = for_cuda(with_positions(kind), dtype)
    for r in (0, 5, *MIXED):
        outputs, _ = run(model, dtype, r)
        assert (outputs.logits.device.type, outputs.logits.dtype) == ("cuda", dtype)


@dataclass(frozen=True)
class Waits(PaddedStrategy):
    """Reads one number back in each merge."""

    def merge(self, context: BlockContext, features: BlockTensors) -> Packed:
        assert features.k.isfinite().all().item()
        return super().merge(context, features)


def test_a_wait_of_the_host_is_detected() -> None:
    model = for_cuda(patch(make_vit(dtype=torch.float32)), torch.float32)
    model.execution = Execution(Waits())
    with pytest.raises(DataDependentOutputException):
        run(model, torch.float32, 3)
