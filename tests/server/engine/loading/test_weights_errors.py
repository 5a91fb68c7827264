"""A file that does not fit its entry is refused with a sentence that names the key and a remedy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from server.catalog.entries import ModelSpec
from server.engine.loading.model_loader import load_model
from server.engine.loading.weights import load_weights
from server.errors import ConfigError
from tests.server.engine.loading.published import WIDTH, Original, Swag, randomise
from tests.server.engine.loading.small_vit import (
    DINOV2,
    DISTILLED,
    SIZES,
    VIT,
    create_timm,
    make_deit,
    make_dinov2,
    make_dinov2_registers,
    make_distilled,
    make_mae,
    make_torchvision,
    save,
)

DROP = None


@dataclass(frozen=True)
class Misfit:
    """A file and an entry that do not fit.

    Attributes:
        make: the file's model.
        timm: the entry's architecture.
        problem, advice: the two parts of the error, after the name of the file.
        model_args: of the entry.
        changes: tensors of the file that are replaced, or dropped.
    """

    make: Callable[[], nn.Module]
    timm: str
    problem: str
    advice: str
    model_args: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Tensor | None] = field(default_factory=dict)


def make_batch_norm() -> nn.Module:
    return nn.BatchNorm2d(4)


OTHER_ARCHITECTURE = (
    "name the architecture that the file was made for: 2 blocks, 32 wide, with patches of 8"
)
MISFITS = {
    "average pooling": Misfit(
        make=make_mae,
        timm=VIT,
        problem=" lacks norm.weight, which the model needs (2 missing in all)",
        advice='set model_args = { global_pool = "avg" }',
    ),
    "class token": Misfit(
        make=make_deit,
        timm=VIT,
        model_args={"global_pool": "avg"},
        problem=" lacks fc_norm.weight, which the model needs (2 missing in all)",
        advice='set model_args = { global_pool = "token" }',
    ),
    "no classifier": Misfit(
        make=make_deit,
        timm=VIT,
        changes={"head.weight": DROP, "head.bias": DROP},
        problem=" lacks head.weight, which the model needs (2 missing in all)",
        advice="it has no classifier; name a file that was fine-tuned, or set num_classes = 0",
    ),
    "classes": Misfit(
        make=make_deit,
        timm=VIT,
        model_args={"num_classes": 7},
        problem=": head.weight has shape (5, 32), the model needs (7, 32)",
        advice="set num_classes = 5",
    ),
    "classes of swag": Misfit(
        make=Swag,
        timm=VIT,
        model_args={"num_classes": 7},
        problem=(
            ": head.weight (head.layers.head.weight in the file) has shape (5, 32), the model "
            "needs (7, 32)"
        ),
        advice="set num_classes = 5",
    ),
    "channels": Misfit(
        make=make_deit,
        timm=VIT,
        model_args={"in_chans": 1},
        problem=(
            ": patch_embed.proj.weight has shape (32, 3, 8, 8), the model needs (32, 1, 8, 8)"
        ),
        advice="set in_chans = 3",
    ),
    "depth": Misfit(
        make=make_deit,
        timm=VIT,
        model_args={"depth": 3},
        problem=" lacks blocks.2.norm1.weight, which the model needs (12 missing in all)",
        advice=OTHER_ARCHITECTURE,
    ),
    "width": Misfit(
        make=make_deit,
        timm=VIT,
        model_args={"embed_dim": 64},
        problem=": cls_token has shape (1, 1, 32), the model needs (1, 1, 64)",
        advice=OTHER_ARCHITECTURE,
    ),
    "distilled": Misfit(
        make=make_distilled,
        timm=VIT,
        problem=" has dist_token, which the model does not (3 unexpected in all)",
        advice="name a distilled architecture",
    ),
    "not distilled": Misfit(
        make=make_deit,
        timm=DISTILLED,
        problem=" lacks dist_token, which the model needs (3 missing in all)",
        advice="name an architecture that is not distilled",
    ),
    "registers": Misfit(
        make=make_dinov2_registers,
        timm=DINOV2,
        problem=" has register_tokens, which the model does not (2 unexpected in all)",
        advice="name an architecture with registers",
    ),
    "LayerScale": Misfit(
        make=make_dinov2,
        timm=VIT,
        problem=" has blocks.0.ls1.gamma, which the model does not (4 unexpected in all)",
        advice="set model_args = { init_values = 1e-5 }",
    ),
    "one key of torchvision": Misfit(
        make=make_torchvision,
        timm=VIT,
        changes={"encoder.layers.encoder_layer_1.mlp.3.bias": DROP},
        problem=" lacks blocks.1.mlp.fc2.bias, which the model needs",
        advice=OTHER_ARCHITECTURE,
    ),
    "one shape of swag": Misfit(
        make=Swag,
        timm=VIT,
        changes={"encoder.layers.layer_1.ln_2.bias": torch.zeros(3)},
        problem=(
            ": blocks.1.norm2.bias (encoder.layers.layer_1.ln_2.bias in the file) has shape (3,), "
            "the model needs (32,)"
        ),
        advice=OTHER_ARCHITECTURE,
    ),
    "positions that are no grid": Misfit(
        make=make_deit,
        timm=VIT,
        changes={"pos_embed": torch.zeros(1, 20, WIDTH)},
        problem=": pos_embed has shape (1, 20, 32), the model needs (1, 17, 32)",
        advice="it could not be resized; set img_size to that of the file's model",
    ),
    "a layer that timm dropped": Misfit(
        make=make_deit,
        timm=VIT,
        changes={"pre_logits.fc.weight": torch.zeros(WIDTH, WIDTH)},
        problem=" has pre_logits.fc.weight, which the model does not",
        advice=(
            "timm's models have no such layer before the classifier any more: it cannot be served"
        ),
    ),
    "no norm at all": Misfit(
        make=make_deit,
        timm=VIT,
        changes={"norm.bias": DROP},
        problem=" lacks norm.bias, which the model needs",
        advice=OTHER_ARCHITECTURE,
    ),
    "another network": Misfit(
        make=make_batch_norm,
        timm=VIT,
        problem=" holds no weights of such a model: it has weight where the model has cls_token",
        advice="docs/checkpoints.md lists the formats that load",
    ),
}


@pytest.mark.parametrize("misfit", MISFITS.values(), ids=MISFITS)
def test_a_file_that_does_not_fit_is_refused_with_one_sentence(
    tmp_path: Path,
    misfit: Misfit,
) -> None:
    state_dict = misfit.make().state_dict()
    for key, tensor in misfit.changes.items():
        if tensor is DROP:
            del state_dict[key]
        else:
            state_dict[key] = tensor
    path = tmp_path / "w.pth"
    torch.save(state_dict, path)
    vit = create_timm(misfit.timm, **misfit.model_args)
    with pytest.raises(ConfigError) as caught:
        load_weights(vit, path)
    assert str(caught.value) == f"{path}{misfit.problem}; {misfit.advice}"


def test_the_number_of_labels_is_checked_as_the_number_of_classes(tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n")
    spec = ModelSpec(
        name="m",
        timm=VIT,
        checkpoint=save(randomise(Original()), tmp_path / "w.safetensors"),
        labels=labels,
        img_size=32,
        model_args=SIZES,
    )
    with pytest.raises(ConfigError, match="set num_classes = 5"):
        load_model(spec, torch.device("cpu"), torch.float32)
