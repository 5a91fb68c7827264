"""Models that timm creates, with its own weights or without any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor

from server.catalog.entries import ModelSpec
from server.errors import ConfigError


def count_classes(tensors: Mapping[str, Tensor], labels: int | None) -> int:
    """Return the number of classes of a file: 0 without a classifier, else that of its labels.

    Args:
        tensors: with timm's names.
        labels: their number; None if there are none, for what the classifier has.
    """
    if "head.weight" not in tensors:
        return 0
    return len(tensors["head.weight"]) if labels is None else labels


def create_timm_model(spec: ModelSpec, classes: int | None, *, pretrained: bool) -> Any:
    """Create the timm model, with timm's own weights if ``pretrained``.

    Args:
        classes: their number, unless the entry sets it; None for timm's.

    Raises:
        ConfigError: timm or the hub raised.
    """
    if spec.num_classes is not None:
        classes = spec.num_classes
    optional = {
        "num_classes": classes,
        "img_size": spec.img_size,
        "in_chans": spec.in_chans,
    }
    arguments = dict(spec.model_args)
    for name, value in optional.items():
        if value is not None:
            arguments[name] = value
    try:
        return timm.create_model(spec.timm, pretrained=pretrained, **arguments)
    except Exception as error:  # timm and the hub raise many types
        message = (
            f"timm cannot create {spec.timm!r} for model {spec.name}: {_summarize_error(error)}"
        )
        if pretrained:
            message += (
                "; without a network, name a checkpoint file"
                " (HF_HUB_OFFLINE=1 skips the hub's retries)"
            )
        raise ConfigError(message) from error


def _summarize_error(error: Exception) -> str:
    if isinstance(error, KeyError) and error.args == ("architecture",):
        return (
            "its config.json names no architecture of timm; download a model of transformers, and"
            " name its folder as local-dir:FOLDER"
        )
    lines = str(error).splitlines()
    first_line = lines[0] if lines else type(error).__name__
    return first_line.rstrip(".")


def check_classifier(spec: ModelSpec, vit: Any) -> None:
    """Check that timm has weights for the classifier.

    Raises:
        ConfigError: its weights are for another number of classes, so timm initialised it randomly.
    """
    classes = vit.pretrained_cfg.get("num_classes")
    if vit.num_classes not in (0, classes):
        raise ConfigError(
            f"model {spec.name}: timm's weights of {spec.timm} have {classes} classes, the labels"
            f" or num_classes say {vit.num_classes}; name a checkpoint that was fine-tuned for them"
        )
