from typing import Any

import pytest
import torch

from server.engine.device import placement
from server.engine.device.placement import configure_pytorch, pick_device, pick_dtype, set_threads
from server.errors import ConfigError
from server.hardware import usable_cores

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "is no device"),
        ("cuda:99", "there is no cuda:99"),
        ("meta", "not supported"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    name: str,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        pick_device(name)


def test_a_device_has_torch_s_name() -> None:
    assert pick_device("cpu") == CPU


def test_a_dtype_has_torch_s_name() -> None:
    assert pick_dtype("float32", CPU) == torch.float32


def test_a_cpu_with_one_dtype_has_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement.cpu_dtypes()[0] == torch.float32
    monkeypatch.setattr(placement, "cpu_dtypes", lambda: (torch.float32,))
    assert pick_dtype("auto", CPU) == torch.float32
    monkeypatch.setattr(placement, "cpu_dtypes", lambda: (torch.float32, torch.bfloat16))
    assert pick_dtype("auto", CPU) is None  # each model is timed


def test_attention_on_a_gpu_does_not_use_cudnn() -> None:
    cudnn: Any = torch.backends.cudnn  # torch makes its conv when it runs
    try:
        configure_pytorch(CPU)
        assert torch.backends.cuda.cudnn_sdp_enabled()
        configure_pytorch(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
        assert cudnn.conv.fp32_precision == "ieee"
    finally:
        cudnn.conv.fp32_precision = "none"
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_engines_share_the_cores() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(3, engines=2) == 3
        assert set_threads(0) == usable_cores()
        assert set_threads(0, engines=2) == max(1, usable_cores() // 2)
        assert set_threads(0, engines=10_000) == 1
    finally:
        torch.set_num_threads(before)
