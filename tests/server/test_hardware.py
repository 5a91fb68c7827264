"""Cores and GPUs are found without torch."""

import os
from pathlib import Path

import pytest

from server.hardware import has_gpu, usable_cores

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", CORES), ("50000 100000", 1), ("100000 100000", 1), ("9900000 100000", CORES)],
)
def test_a_cpu_quota_limits_the_cores(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path / "cpu.max") == expected


def test_without_a_quota_all_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none") == CORES


def test_a_device_node_shows_that_there_is_a_gpu(tmp_path: Path) -> None:
    nodes = [tmp_path / "nvidiactl", tmp_path / "dxg"]
    assert not has_gpu(nodes, visible="0")
    for node in nodes:
        node.touch()
        assert has_gpu(nodes, visible="0")
        node.unlink()


def test_an_environment_variable_hides_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert has_gpu([tmp_path])
    for hidden in ("", "-1"):
        assert not has_gpu([tmp_path], visible=hidden)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert not has_gpu([tmp_path])
