"""``tome-serve text``: reads labels and templates, embeds their texts, and writes a label set."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from server.commands.console import make_progress
from server.commands.text.flags import TextCommand
from server.commands.text.towers import TextTower, load_tower
from server.engine.device.placement import pick_device
from server.engine.loading.label_vectors import LabelVectors, write_label_vectors
from server.engine.loading.labels import read_labels
from server.errors import ConfigError
from server.logs import log_step
from server.system.files import check_writable

log = logging.getLogger("tome.server")

PLACE = "{}"  # of the label in a template


def write_text(command: TextCommand) -> int:
    """Write the label set that ``command`` describes, and return the exit code.

    Raises:
        ConfigError: a file cannot be read or written, or there is no such text tower.
    """
    assert command.output is not None, "its validator requires it"
    labels = read_label_list(command.labels)
    templates = (PLACE,) if command.templates is None else read_templates(command.templates)
    check_writable(command.output)
    with log_step(log, f"loading the text tower of {command.model}"):
        tower = load_tower(command.model, command.library, pick_device(command.device))
    vectors = mean_vectors(tower, labels, templates, command.batch)
    label_set = LabelVectors(labels, vectors, tower.scale, tower.bias)
    write_label_vectors(command.output, label_set)
    bias = "" if tower.bias is None else f", logit_bias {tower.bias:.4g}"
    print(
        f"{command.output}: {len(labels):,} labels, vectors of {vectors.shape[1]}, the means of"
        f" {len(templates):,} templates; logit_scale {tower.scale:.4g}{bias}:"
        f" {label_set.activation}"
    )
    return 0


def read_label_list(path: Path) -> tuple[str, ...]:
    """Return the labels in ``path``, one a line.

    Raises:
        ConfigError: it cannot be read, has no label, an empty line, or a label twice.
    """
    labels = read_labels(path)
    first_line: dict[str, int] = {}
    for line, label in enumerate(labels, start=1):
        if not label:
            raise ConfigError(f"{path}, line {line}: it is empty; write one label a line")
        if label in first_line:
            raise ConfigError(
                f"{path}, line {line}: {label!r} stands in line {first_line[label]} too; name each"
                " label once"
            )
        first_line[label] = line
    return labels


def read_templates(path: Path) -> tuple[str, ...]:
    """Return the templates in ``path``, one a line; empty lines do not count.

    Raises:
        ConfigError: it cannot be read, has none, or one without the place of the label.
    """
    templates = tuple(line for line in read_labels(path) if line)
    if not templates:
        raise ConfigError(f"{path} has no template; write one a line, such as: a photo of a {{}}.")
    for template in templates:
        if PLACE not in template:
            raise ConfigError(
                f"{path}: the template {template!r} has no {{}}, where the label goes"
            )
    return templates


def mean_vectors(
    tower: TextTower, labels: Sequence[str], templates: Sequence[str], batch: int
) -> Tensor:
    """Return the vectors of ``labels``, float32 ``(labels, D)`` of unit length.

    That of a label is the mean of the unit vectors of its texts, one for each template, scaled to
    unit length again, as the authors of CLIP do.
    """
    count = len(templates)
    sums: Tensor | None = None
    texts = (template.replace(PLACE, label) for label in labels for template in templates)
    done = 0
    with make_progress() as progress:
        task = progress.add_task("texts", total=len(labels) * count)
        while part := list(itertools.islice(texts, batch)):
            embedded = functional.normalize(tower.embed(part).double(), dim=-1)
            if sums is None:
                sums = torch.zeros(len(labels), embedded.shape[1], dtype=torch.float64)
            owners = torch.arange(done, done + len(part)) // count
            sums.index_add_(0, owners, embedded)
            done += len(part)
            progress.update(task, completed=done)
    assert sums is not None, "there is a label"
    return functional.normalize(sums, dim=-1).float()
