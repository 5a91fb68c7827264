"""A batch in flight: what `collect` gives each image, and the format of packed rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from server.engine.device.readout import read_out
from server.engine.execution.image_input import ImageInput
from server.engine.execution.in_flight import BatchInFlight, pack_rows
from server.ipc.messages import OutputKind
from tome_core import Outputs
from tome_core.schedule import Schedule

LOGITS = torch.tensor([[0.0, 2.0, 1.0], [float("nan"), 0.0, 0.0]])
FEATURES = torch.tensor([[1.0, -2.5], [3.0, 4.0]])
SOURCE = torch.tensor([[0, 1, 1], [0, 0, 2]])


def requesting(output_kind: OutputKind, top_k: int = 0) -> ImageInput:
    return ImageInput(np.empty(0, np.uint8), Schedule.constant(0), top_k, output_kind)


def test_each_image_gets_the_output_that_it_requests() -> None:
    readout = read_out(Outputs(LOGITS, FEATURES, SOURCE), "none", top=2)
    batch = BatchInFlight(readout, [requesting("classes", 2), requesting("features")])
    assert batch.done()  # on a CPU it has run already
    classes, features = batch.collect()
    assert classes.classes == (1, 2)
    assert classes.scores == pytest.approx((2.0, 1.0))
    assert classes.finite
    assert classes.features == classes.source == b""
    assert features.classes == ()
    assert not features.finite
    assert np.frombuffer(features.features, "<f4").tolist() == [3.0, 4.0]


def test_source_maps_are_32_bit_integers() -> None:
    readout = read_out(Outputs(LOGITS, FEATURES, SOURCE), "none", top=1)
    first, second = BatchInFlight(readout, [requesting("source")] * 2).collect()
    assert np.frombuffer(first.source, "<i4").tolist() == [0, 1, 1]
    assert np.frombuffer(second.source, "<i4").tolist() == [0, 0, 2]


class LostEvent:
    """An event of a device that fails."""

    def query(self) -> bool:
        raise RuntimeError("injected")

    synchronize = query


def test_a_failure_of_the_device_ends_the_wait_and_is_raised_by_collect() -> None:
    readout = read_out(Outputs(LOGITS, FEATURES, None), "none", top=1)
    batch = BatchInFlight(readout, [requesting("classes", 1)] * 2)
    batch._copied = LostEvent()
    assert batch.done()
    with pytest.raises(RuntimeError, match="injected"):
        batch.collect()


def test_rows_are_packed_little_endian_and_only_where_requested() -> None:
    values = np.array([[1.0, -2.5], [3.0, 4.0]], np.float32)
    assert pack_rows(values, [True, False]) == [b"\x00\x00\x80\x3f\x00\x00\x20\xc0", b""]
    assert pack_rows(values.astype(np.int32), [False, True]) == [b"", b"\x03\0\0\0\x04\0\0\0"]
    assert pack_rows(values, [False, False]) == [b"", b""]
