"""Labels of classes: from a file, from a model's folder, or timm's names of ImageNet's classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm.data

from server.catalog.entries import ModelSpec
from server.errors import ConfigError

Labels = tuple[str, ...]


def read_labels(path: Path) -> Labels:
    """Return the labels in ``path``, one a line, without the blank lines at the end.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        text = path.read_text("utf-8-sig")  # Windows' editors put a byte order mark in front
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); save the labels as such") from error
    except OSError as error:
        raise ConfigError(f"cannot read the labels in {path}: {error}") from error
    return tuple(line.strip() for line in text.rstrip().split("\n"))


def default_labels(vit: Any) -> Labels | None:
    """Return the labels that came with the model, or timm's names; None if there are neither."""
    if not vit.num_classes:
        return None  # timm would infer the subset of the pretrained configuration
    return own_labels(vit) or imagenet_labels(vit)


def own_labels(vit: Any) -> Labels | None:
    """Return the labels that came with the model; None if there are none."""
    names = vit.pretrained_cfg.get("label_names")
    if not vit.num_classes or not names:
        return None
    return folder_labels(names, vit.pretrained_cfg.get("label_descriptions"))


def folder_labels(names: Any, descriptions: Any) -> Labels:
    """Return the labels of a folder of the hub, in the order of the classes.

    As timm's ``CustomDatasetInfo``: ``names`` is a list, or names by index; ``descriptions``, by
    name, have precedence.

    Raises:
        ConfigError: they are neither.
    """
    if isinstance(names, Mapping):
        names = in_order_of_index(names, "config.json: the keys of label_names")
    if not isinstance(names, list | tuple):
        raise ConfigError("config.json: label_names must be a list")
    if not isinstance(descriptions, Mapping):
        descriptions = {}
    return tuple(str(descriptions.get(name, name)) for name in names)


def in_order_of_index(names: Mapping[Any, Any], keys: str) -> list[Any]:
    """Return the values of ``names`` by its keys: 0, 1, 2, ..., also as text.

    Raises:
        ConfigError: ``keys``, which the message calls them, are others.
    """
    try:
        by_index = {int(index): name for index, name in names.items()}
        return [by_index[index] for index in range(len(by_index))]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{keys} must be 0, 1, 2, ...") from error


def imagenet_labels(vit: Any) -> Labels | None:
    """Return timm's names of the classes; None if they are not those of an ImageNet subset."""
    subset = timm.data.infer_imagenet_subset(vit)
    if subset is None:
        return None
    info = timm.data.ImageNetInfo(subset)
    return tuple(info.index_to_description(index) for index in range(info.num_classes()))


def resolve_labels(spec: ModelSpec, labels: Labels | None, classes: int) -> Labels:
    """Return ``labels``, or the indices of the ``classes`` if there are none.

    Raises:
        ConfigError: the number of labels is not the number of classes.
    """
    if labels is None:
        return tuple(map(str, range(classes)))
    if len(labels) != classes:
        raise ConfigError(f"model {spec.name}: {len(labels)} labels for {classes} classes")
    return labels
