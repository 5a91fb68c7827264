"""Runtimes that run a ViT from an ONNX file on the CPU: ``pip install --group bench``."""

from __future__ import annotations

import importlib.util
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from benchmarks.cases import Setup

Logits = npt.NDArray[np.float32]


def export(vit: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """Write ``vit`` as ONNX for one static ``shape``; returns the file, weights beside it."""
    file = folder / "vit.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the exporter's own deprecations, none of which a user can act on
        torch.onnx.export(
            vit,
            (torch.zeros(shape),),
            file,
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    return file


def _missing(package: str, device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it is measured on the CPU only, and this run is on {device.type}"
    for needed in (package, "onnx", "onnxscript"):
        if importlib.util.find_spec(needed) is None:
            return f"{needed} is not installed; `pip install --group bench` brings it"
    return None


class OnnxRuntime:
    """ONNX Runtime's CPU provider, with all of its graph optimisations."""

    name = "onnxruntime"
    merges = False
    dtypes = ("fp32",)

    def missing(self, device: torch.device) -> str | None:
        """On a GPU, or where a package is not installed."""
        return _missing("onnxruntime", device)

    def build(self, setup: Setup) -> Callable[[Tensor, Any], Logits]:
        """A session with as many threads as everyone has."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = setup.threads
        options.log_severity_level = 3
        # Its threads would otherwise spin on into the next contender's turn.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with tempfile.TemporaryDirectory() as folder:
            file = export(setup.vit, setup.shape, Path(folder))
            session = onnxruntime.InferenceSession(
                file, options, providers=["CPUExecutionProvider"]
            )
        return lambda images, _: session.run(None, {"images": images.numpy()})[0]


class OpenVino:
    """OpenVINO's CPU plugin for one static shape, tuned for latency (all threads per batch).

    Args:
        dtype: the cases it is measured in.
        precision: OpenVINO's name of it.
    """

    merges = False

    def __init__(self, dtype: str, precision: str) -> None:
        self.name = f"openvino-{dtype}"
        self.dtypes = (dtype,)
        self._precision = precision

    def missing(self, device: torch.device) -> str | None:
        """On a GPU, or where a package is not installed."""
        return _missing("openvino", device)

    def build(self, setup: Setup) -> Callable[[Tensor, Any], Logits]:
        """From the same ONNX file as ONNX Runtime."""
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": setup.threads,
            "PERFORMANCE_HINT": "LATENCY",
            # A pinned thread cannot leave a core that another process is busy on, as everyone
            # else's threads can.
            "ENABLE_CPU_PINNING": False,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = export(setup.vit, setup.shape, Path(folder))
            network = core.compile_model(core.read_model(file), "CPU", options)
        return lambda images, _: network(images.numpy(), share_inputs=True)[0]
