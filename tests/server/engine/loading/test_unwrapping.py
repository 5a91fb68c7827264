"""Files of training scripts: what wraps the model is removed, and what lies beside it."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import logging
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from server.engine.loading.checkpoints import read_checkpoint
from server.engine.loading.unwrapping import WRAPPER_KEYS, find_state_dict
from server.errors import ConfigError
from tests.server.engine.loading.published import randomise
from tests.server.engine.loading.small_vit import VIT, create_timm, make_torchvision

StateDict = dict[str, Tensor]
PATH = Path("w.pth")
STATE_DICT = {
    "cls_token": torch.ones(1, 1, 4),
    "patch_embed.proj.weight": torch.ones(4, 3, 2, 2),
    "head.weight": torch.ones(3, 4),
}


def under(prefix: str, state_dict: StateDict = STATE_DICT) -> StateDict:
    return {f"{prefix}{key}": value for key, value in state_dict.items()}


def zeros(state_dict: StateDict = STATE_DICT) -> StateDict:
    return {key: torch.zeros_like(value) for key, value in state_dict.items()}


def assert_same(found: StateDict, expected: StateDict = STATE_DICT) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def error(content: Any, prefix: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        find_state_dict(content, PATH, prefix)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", WRAPPER_KEYS)
def test_a_wrapper_is_removed(key: str) -> None:
    content = {"epoch": 3, key: STATE_DICT, "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}}}
    assert_same(find_state_dict(content, PATH))


def test_averaged_weights_come_before_others() -> None:
    for averaged in ("model_ema", "ema", "state_dict_ema", "teacher", "target_encoder"):
        content = {"model": zeros(), "student": zeros(), averaged: STATE_DICT}
        assert_same(find_state_dict(content, PATH))


def test_an_average_that_was_not_kept_is_passed_over() -> None:
    assert_same(find_state_dict({"model_ema": None, "ema": {}, "model": STATE_DICT}, PATH))


def test_a_wrapper_of_another_name_is_found_by_what_it_holds() -> None:
    content = {"epoch": 3, "my_vit": STATE_DICT, "optimizer": {"state": {0: torch.ones(4)}}}
    assert_same(find_state_dict(content, PATH))
    assert_same(find_state_dict({"ema": {"decay": 0.9, "shadow": STATE_DICT}}, PATH))


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "_orig_mod.module.",
        "net.",
        "model.",
        "visual.",
        "trainer.my_net.",
        "trainer.visual.",
    ],
)
def test_any_prefix_is_removed(prefix: str) -> None:
    assert_same(find_state_dict({"state_dict": under(prefix)}, PATH))


@pytest.mark.parametrize("prefix", ["net.", "model.", "student.vit."])
def test_criterion_and_metrics_beside_the_model_are_left_out(
    prefix: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    beside = {
        "criterion.weight": torch.ones(3),
        "loss_fn.network.0.weight": torch.ones(4, 4, 3, 3),
        "train_metrics.MulticlassAccuracy.tp": torch.ones(3, dtype=torch.int64),
        "val_acc.correct": torch.ones(3),
        "confmat.confmat": torch.ones(3, 3),
        "class_weights": torch.ones(3),
        "val_MulticlassAccuracy.tp": torch.ones(3),
        "n_averaged": torch.tensor(7),
        "temperature": torch.ones(1),
    }
    with caplog.at_level(logging.INFO, "tome.engine"):
        assert_same(find_state_dict({"state_dict": under(prefix) | beside}, PATH))
    assert "left out criterion.weight, " in caplog.text


def test_criterion_and_metrics_beside_a_model_without_prefix_are_left_out() -> None:
    beside = {"criterion.weight": torch.ones(3), "val_acc.correct": torch.ones(3)}
    assert_same(find_state_dict(STATE_DICT | beside, PATH))


def test_wrappers_around_single_layers_are_removed() -> None:
    content = {
        "_fsdp_wrapped_module.cls_token": STATE_DICT["cls_token"],
        "_fsdp_wrapped_module.patch_embed._orig_mod.proj.weight": STATE_DICT[
            "patch_embed.proj.weight"
        ],
        "head._checkpoint_wrapped_module.weight": STATE_DICT["head.weight"],
    }
    assert_same(find_state_dict(content, PATH))


def test_a_classifier_outside_of_the_backbone_is_refused_with_what_to_do() -> None:
    backbone = {key: value for key, value in STATE_DICT.items() if key != "head.weight"}
    content = {**under("backbone.", backbone), "head.weight": torch.ones(5, 4)}
    assert error(content) == (
        "w.pth: head.weight lies outside of the model, whose keys begin with 'backbone.'; what the"
        ' two compute together is not known. To serve the model alone, set prefix = "backbone."'
        " (and num_classes = 0 if it has no classifier of its own); or save both as one model of"
        " timm"
    )
    assert_same(find_state_dict(content, PATH, "backbone."), backbone)


def test_of_several_models_one_must_be_named() -> None:
    content = {"state_dict": under("student.") | under("teacher.")}
    assert "several Vision Transformers, whose keys begin with 'student.', 'teacher.'" in error(
        content
    )
    assert_same(find_state_dict(content, PATH, "teacher."))
    nested = {"student": STATE_DICT, "assistant": zeros()}
    assert "'assistant.', 'student.'; set one of them as prefix" in error(nested)
    assert_same(find_state_dict(nested, PATH, "student"))


@pytest.mark.parametrize("prefix", ["net", "net.", "state_dict.net", "state_dict.net."])
def test_a_prefix_selects_keys_within_wrappers_or_from_the_top(prefix: str) -> None:
    content = {"state_dict": under("net.") | under("decoder.", zeros()), "lr": 0.1}
    assert_same(find_state_dict(content, PATH, prefix))


def test_a_prefix_that_no_key_has_is_answered_with_those_there_are() -> None:
    message = error({"state_dict": under("net.")}, "model.")
    assert message == "w.pth: no key begins with prefix = 'model.'; they begin with net"


METADATA = {
    "best": np.float64(0.91),
    "best32": np.float32(0.91),
    "epochs": np.int64(3),
    "is_best": np.bool_(True),
    "curve": np.arange(4.0),
    "history": [np.float32(1), np.float32(2)],
    "by_class": collections.defaultdict(list, {"cat": [1]}),
    "counts": collections.Counter("aab"),
    "last": collections.deque([0.5, 0.4], maxlen=2),
    "frozen": frozenset({1}),
    "share": fractions.Fraction(1, 2),
    "price": decimal.Decimal("0.5"),
    "folder": pathlib.Path("runs") / "1",
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("runs")),
    "at": datetime.datetime(2024, 1, 1),
    "torch": torch.__version__,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_metadata_of_training_scripts_is_accepted(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    content = {"model_state_dict": STATE_DICT, **METADATA}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert_same(read_checkpoint(path))


def test_metadata_among_the_tensors_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({**STATE_DICT, **METADATA}, path)
    assert_same(read_checkpoint(path))


def test_values_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"model": {"cls_token": np.ones(3), "b": torch.ones(1)}}, path)
    with pytest.raises(ConfigError, match="'cls_token' is of type"):
        read_checkpoint(path)


def average(network: nn.Module) -> nn.Module:
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(network)
    return averaged


@pytest.mark.parametrize("make", [make_torchvision, lambda: create_timm(VIT)])
def test_torch_s_averaged_model_loads(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    """torchvision's reference training saves such a file."""
    network = randomise(make())
    averaged = average(network)
    path = tmp_path / "checkpoint.pth"
    optimizer = torch.optim.AdamW(network.parameters())
    content = {
        "model": zeros(network.state_dict()),
        "model_ema": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, path)
    assert "n_averaged" in averaged.state_dict()
    assert_same(read_checkpoint(path), network.state_dict())


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrappers_of_torch_load(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """The names of ``DistributedDataParallel`` are those of ``DataParallel``."""
    network = randomise(create_timm(VIT))
    wrapped = wrap(network)
    assert wrapped.state_dict().keys() != network.state_dict().keys()
    path = tmp_path / "w.pth"
    torch.save({"epoch": 1, "arch": VIT, "state_dict": wrapped.state_dict()}, path)
    assert_same(read_checkpoint(path), network.state_dict())


def test_layers_compiled_one_by_one_load() -> None:
    network = create_timm(VIT)
    expected = network.state_dict()
    for index, block in enumerate(network.blocks):
        network.blocks[index] = torch.compile(block)
    assert "blocks.0._orig_mod.norm1.weight" in network.state_dict()
    assert_same(find_state_dict(network.state_dict(), PATH), expected)


def test_the_averaged_weights_of_timm_s_training_load(tmp_path: Path) -> None:
    network: Any = randomise(create_timm(VIT))
    averaged = timm.utils.ModelEmaV3(network)
    nn.init.zeros_(network.head.weight)
    saver = timm.utils.CheckpointSaver(
        network,
        torch.optim.AdamW(network.parameters()),
        model_ema=averaged,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=3, metric=np.float64(81.5))
    assert_same(read_checkpoint(tmp_path / "last.pth.tar"), averaged.module.state_dict())


def test_lightning_s_checkpoint_loads(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")
    torchmetrics = pytest.importorskip("torchmetrics")

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self, lr: float, weights: list[float]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net = create_timm(VIT)
            self.criterion = nn.CrossEntropyLoss(torch.tensor(weights))
            self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=5)
            self.accuracy.persistent(True)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)

    module = Classifier(0.1, [1.0] * 5)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.strategy.connect(module)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    keys = torch.load(path, weights_only=False)["state_dict"].keys()
    assert {"criterion.weight", "accuracy.tp"} <= keys
    assert_same(read_checkpoint(path), module.net.state_dict())
