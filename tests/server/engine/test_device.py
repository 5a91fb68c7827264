import os
from pathlib import Path

import pytest
import torch

from server.engine.device import avoid_plans, pick_device, pick_dtype, usable_cores
from server.errors import ConfigError

CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", CORES), ("50000 100000", 1), ("100000 100000", 1), ("9900000 100000", CORES)]
)
def test_a_container_s_share_of_time_bounds_the_threads(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path / "cpu.max") == expected


def test_without_a_quota_all_cores_count(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "none") == CORES


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name, sentence in (("gpu", "is no device"), ("cuda:99", "there is no cuda:99"), ("meta", "not supported")):
        with pytest.raises(ConfigError, match=sentence):
            pick_device(name)


def test_dtypes() -> None:
    assert pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_on_a_gpu_attention_needs_no_plans() -> None:
    try:
        avoid_plans(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        avoid_plans(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
