"""What weights take, by their files, and when there is no room for them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from server.catalog.entries import ModelSpec
from server.engine.device import memory
from server.engine.loading import room
from server.errors import ConfigError

CPU = torch.device("cpu")


def test_all_weights_count_as_float32(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    save_file({"a": torch.zeros(10, 3, dtype=torch.float16), "b": torch.zeros(5)}, path)
    spec = ModelSpec(name="a", timm="vit", checkpoint=path)
    assert room.weight_bytes(spec) == 4 * 35
    assert room.weight_bytes(ModelSpec(name="hub", timm="vit")) is None
    path.write_bytes(b"\xff" * 100)
    assert room.weight_bytes(spec) is None


def test_what_cannot_fit_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1_000_000)}, path)
    specs = [
        ModelSpec(name="a", timm="vit", checkpoint=path),
        ModelSpec(name="hub", timm="vit"),
    ]
    with caplog.at_level(logging.INFO, "tome.engine"):
        room.check_room(specs, CPU)
    assert "weights of 4 MB, and those of hub" in caplog.text
    monkeypatch.setattr(room, "free_bytes", lambda device: 3_000_000)
    with pytest.raises(ConfigError, match=r"weights of 4 MB.*3 MB are free on cpu"):
        room.check_room(specs, CPU)


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("800\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 200\n")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    assert memory.free_bytes(CPU) == 7 * 1024
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes(CPU) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == 7 * 1024
