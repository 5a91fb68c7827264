"""Files of label sets: labels, and the vector that a text tower gives each of them.

A file is safetensors. Its tensors are ``vectors``, float32 ``(labels, D)`` of unit length, and,
optional, the numbers ``logit_scale``, by which a cosine is multiplied, and ``logit_bias``, which is
then added. The labels are a JSON list in the metadata, under ``labels``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.device.text_head import TextHead, TextHeads
from server.errors import ConfigError
from server.system.files import replacing

VECTORS = "vectors"
SCALE = "logit_scale"
BIAS = "logit_bias"
LABELS = "labels"

_HOW = "`tome-serve text` writes such files"
# Vectors that 16 bits have rounded differ from unit length by less.
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LabelVectors:
    """One label set.

    Attributes:
        vectors: float32 ``(labels, D)``, of unit length.
        scale: by which cosines are multiplied; None if they are scores as they are.
        bias: added to the product, for a sigmoid; None for a softmax.
    """

    labels: tuple[str, ...]
    vectors: Tensor
    scale: float | None = None
    bias: float | None = None

    @property
    def activation(self) -> str:
        """What computes the scores, unless the model's entry says it."""
        if self.bias is not None:
            return "sigmoid"
        return "cosine" if self.scale is None else "softmax"


def read_label_sets(spec: ModelSpec) -> dict[str, LabelVectors]:
    """Return the label sets of an entry by their names, the default first; empty if it has none.

    Raises:
        ConfigError: a file cannot be read, is no label set, or does not fit the others.
    """
    files = spec.label_files
    if not files:
        if spec.activation == "cosine":
            raise ConfigError(f'model {spec.name}: activation = "cosine" is for models with text')
        return {}
    if spec.labels is not None:
        raise ConfigError(
            f"model {spec.name} has labels and text; the files of text hold their own labels:"
            " leave labels out"
        )
    label_sets = {name: read_label_vectors(path) for name, path in files.items()}
    if "activation" not in spec.model_fields_set:
        _check_one_activation(spec, label_sets)
    return label_sets


def _check_one_activation(spec: ModelSpec, label_sets: Mapping[str, LabelVectors]) -> None:
    found = {one.activation: name for name, one in label_sets.items()}
    if len(found) > 1:
        described = ", ".join(f"{name} {activation}" for activation, name in found.items())
        raise ConfigError(
            f"model {spec.name}: text: by their {SCALE} and {BIAS} the files need different"
            f" activations ({described}); write all with one text tower, or set activation"
        )


def activation_of(spec: ModelSpec, label_sets: Mapping[str, LabelVectors]) -> str:
    """Return what computes the scores of an entry with label sets: what it says, or its files."""
    if "activation" in spec.model_fields_set:
        return spec.activation
    return next(iter(label_sets.values())).activation


def check_width(spec: ModelSpec, label_sets: Mapping[str, LabelVectors], width: int) -> None:
    """Raise `ConfigError` unless all vectors are as wide as the model's embedding."""
    for name, one in label_sets.items():
        if one.vectors.shape[1] != width:
            raise ConfigError(
                f"model {spec.name}: text: the vectors in {spec.label_files[name]} have"
                f" {one.vectors.shape[1]} numbers, the model's embedding has {width}; they must"
                " come from the text tower of the same model"
            )


def text_heads(
    label_sets: Mapping[str, LabelVectors], activation: str, device: torch.device
) -> TextHeads | None:
    """Return the label sets on ``device``; None if there are none."""
    if not label_sets:
        return None
    heads = {}
    for name, one in label_sets.items():
        if activation == "cosine":
            heads[name] = TextHead(one.vectors.to(device), 0.0)
        else:
            scale = 1.0 if one.scale is None else one.scale
            heads[name] = TextHead((one.vectors * scale).to(device), one.bias or 0.0)
    return TextHeads(heads, activation)


def read_label_vectors(path: Path) -> LabelVectors:
    """Return the label set in ``path``.

    Raises:
        ConfigError: it cannot be read, or is no label set; the message says what is wrong.
    """
    tensors, metadata = _read(path)
    for key in tensors:
        if key not in (VECTORS, SCALE, BIAS):
            raise ConfigError(
                f"{path} has {key}, which is no part of a label set: those are {VECTORS}, {SCALE}"
                f" and {BIAS}; {_HOW}"
            )
    if VECTORS not in tensors:
        raise ConfigError(f"{path} lacks {VECTORS}, the vectors of the labels; {_HOW}")
    vectors = tensors[VECTORS]
    labels = _parse_labels(path, metadata.get(LABELS))
    _check_vectors(path, vectors, labels)
    scale = _number(path, tensors, SCALE)
    if scale is not None and scale <= 0:
        raise ConfigError(
            f"{path}: {SCALE} is {scale:g}, and must be greater than 0: it multiplies cosines"
            " (exp of the parameter that models of transformers have)"
        )
    return LabelVectors(labels, vectors, scale, _number(path, tensors, BIAS))


def write_label_vectors(path: Path, label_set: LabelVectors) -> None:
    """Write a label set to ``path``, whole or not at all."""
    tensors = {VECTORS: label_set.vectors}
    for name, value in {SCALE: label_set.scale, BIAS: label_set.bias}.items():
        if value is not None:
            tensors[name] = torch.tensor(value)
    content = safetensors.torch.save(tensors, {LABELS: json.dumps(label_set.labels)})
    with replacing(path) as file:
        file.write(content)


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # safetensors raises several types
        raise ConfigError(
            f"{path} is no safetensors file, or is damaged or cut short ({error}); {_HOW}"
        ) from error


def _parse_labels(path: Path, text: str | None) -> tuple[str, ...]:
    try:
        labels: Any = json.loads(text or "")
    except (ValueError, RecursionError):
        labels = None
    is_list = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not is_list or not all(labels) or not labels:
        raise ConfigError(
            f"{path} lacks {LABELS} in its metadata: a JSON list of the texts of the labels, none"
            f" of them empty; {_HOW}"
        )
    return tuple(labels)


def _check_vectors(path: Path, vectors: Tensor, labels: tuple[str, ...]) -> None:
    if vectors.dtype != torch.float32 or vectors.ndim != 2:
        raise ConfigError(
            f"{path}: {VECTORS} must be float32 of shape (labels, D), not"
            f" {str(vectors.dtype).removeprefix('torch.')} of shape {tuple(vectors.shape)}"
        )
    if len(vectors) != len(labels):
        raise ConfigError(f"{path} has {len(labels)} labels for {len(vectors)} {VECTORS}")
    lengths = vectors.norm(dim=1)
    wrong = ~((lengths - 1).abs() <= _UNIT_TOLERANCE)  # also of NaN
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise ConfigError(
            f"{path}: {VECTORS} must have unit length; that of {labels[index]!r} has"
            f" {float(lengths[index]):g}: divide each by its Euclidean norm"
        )


def _number(path: Path, tensors: Mapping[str, Tensor], key: str) -> float | None:
    tensor = tensors.get(key)
    if tensor is None:
        return None
    if tensor.numel() != 1 or not math.isfinite(tensor.item()):
        raise ConfigError(f"{path}: {key} must be one finite number")
    return float(tensor.item())
