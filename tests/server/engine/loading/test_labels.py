"""Labels come from the entry's file, else from the model's folder, else from timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from server.catalog.entries import ModelSpec
from server.engine.loading.labels import folder_labels, read_labels
from server.engine.loading.model_loader import load_model
from server.errors import ConfigError
from tests.server.engine.loading.published import CLASSES
from tests.server.engine.loading.small_vit import SIZES, VIT, create_timm

NAMES = ["n1", "n2", "n3", "n4", "n5"]
DESCRIPTIONS = {name: f"the class {name}" for name in NAMES}


def test_a_byte_order_mark_is_no_part_of_the_first_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("cat\r\ndög\r\n".encode("utf-8-sig"))
    assert read_labels(path) == ("cat", "dög")


def test_labels_in_another_encoding_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("cat\ndog\n", "utf-16")
    with pytest.raises(ConfigError, match=r"labels\.txt is not UTF-8 text .*; save the labels as"):
        read_labels(path)


def load(folder: Path, **fields: Any) -> tuple[str, ...]:
    """Return the labels with which a folder that timm saved is served."""
    spec = ModelSpec(name="m", timm=f"local-dir:{folder}", **fields)
    return load_model(spec, torch.device("cpu"), torch.float32, levels=(0,)).labels


def save(folder: Path, **config: Any) -> None:
    sizes = {**SIZES, "img_size": 32}
    save_for_hf(create_timm(VIT), str(folder), model_config=config, model_args=sizes)


def test_the_labels_of_a_folder_are_used(tmp_path: Path) -> None:
    save(tmp_path, label_names=NAMES)
    assert load(tmp_path) == tuple(NAMES)


def test_descriptions_have_precedence_over_names(tmp_path: Path) -> None:
    save(tmp_path, label_names=NAMES, label_descriptions=DESCRIPTIONS)
    assert load(tmp_path) == tuple(DESCRIPTIONS.values())


def test_the_entry_s_labels_have_precedence_over_the_folder_s(tmp_path: Path) -> None:
    save(tmp_path, label_names=NAMES)
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    assert load(tmp_path, labels=labels) == ("a", "b", "c", "d", "e")


def test_a_folder_with_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    save(tmp_path, label_names=NAMES[:3])
    with pytest.raises(ConfigError, match=f"3 labels for {CLASSES} classes"):
        load(tmp_path)


def test_names_by_index_are_in_the_order_of_the_indices() -> None:
    info = timm.data.CustomDatasetInfo({"1": "b", "0": "a"}, {"a": "A", "b": "B"})
    expected = tuple(info.index_to_description(index) for index in range(2))
    assert folder_labels({"1": "b", "0": "a"}, {"a": "A", "b": "B"}) == expected == ("A", "B")


@pytest.mark.parametrize("names", [{"0": "a", "2": "c"}, {"cat": 0}, "cat"], ids=str)
def test_labels_that_are_no_list_are_refused(names: Any) -> None:
    with pytest.raises(ConfigError, match="label_names must be"):
        folder_labels(names, None)
