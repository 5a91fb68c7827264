import pytest
import torch

from server.engine.device.placement import choose_kernels, pick_device, pick_dtype
from server.errors import ConfigError


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name, sentence in (
        ("gpu", "is no device"),
        ("cuda:99", "there is no cuda:99"),
        ("meta", "not supported"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            pick_device(name)


def test_dtypes() -> None:
    assert pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


def test_on_a_gpu_attention_needs_no_plans() -> None:
    try:
        choose_kernels(torch.device("cpu"))
        assert torch.backends.cuda.cudnn_sdp_enabled()
        choose_kernels(torch.device("cuda"))
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert (
            torch.backends.cuda.flash_sdp_enabled()
            and torch.backends.cuda.mem_efficient_sdp_enabled()
        )
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    finally:
        torch.backends.cudnn.conv.fp32_precision = "none"
        torch.backends.cuda.enable_cudnn_sdp(True)
