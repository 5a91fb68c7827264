"""Pinned memory with simulated events and streams. Real ones run in `tests/cuda`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from server.engine.device.pinned_memory import PinnedMemory

SHAPE = (2, 3, 4, 4)


class FakeEvent:
    """A CUDA event that counts how often it was recorded, and waited for."""

    def __init__(self) -> None:
        self.recorded = 0
        self.waits = 0

    def record(self, stream: object) -> None:
        self.recorded += 1

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[FakeEvent]:
    created: list[FakeEvent] = []
    empty = torch.empty

    def make_event() -> FakeEvent:
        created.append(FakeEvent())
        return created[-1]

    def current_stream(device: torch.device) -> None:
        return None

    def unpinned(
        *size: Any,
        pin_memory: bool = False,
        **options: Any,
    ) -> torch.Tensor:
        return empty(*size, **options)

    monkeypatch.setattr(torch.cuda, "Event", make_event)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch, "empty", unpinned)
    return created


def random_pixels(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, SHAPE, np.uint8)


@pytest.mark.usefixtures("events")
def test_pixels_are_copied_wherever_they_lie() -> None:
    memory = PinnedMemory(torch.device("cuda"))
    for seed in range(4):
        pixels = random_pixels(seed)
        on_device = torch.zeros(SHAPE, dtype=torch.uint8)
        if seed % 2:
            buffer = memory.next_buffer(SHAPE)
            buffer[:] = pixels
            memory.copy(buffer, on_device)
        else:
            memory.copy(pixels, on_device)
        assert np.array_equal(on_device.numpy(), pixels)


@pytest.mark.usefixtures("events")
def test_the_next_buffer_does_not_overwrite_the_one_that_is_being_copied() -> None:
    memory = PinnedMemory(torch.device("cuda"))
    on_device = torch.zeros(SHAPE, dtype=torch.uint8)
    first = memory.next_buffer(SHAPE)
    memory.copy(first, on_device)
    second = memory.next_buffer(SHAPE)
    memory.copy(second, on_device)
    third = memory.next_buffer(SHAPE)
    assert not np.shares_memory(first, second)
    assert np.shares_memory(first, third)


def test_the_host_waits_for_the_last_copy_out_of_the_same_buffer(events: list[FakeEvent]) -> None:
    memory = PinnedMemory(torch.device("cuda"))
    on_device = torch.zeros(SHAPE, dtype=torch.uint8)
    first, second = events
    for _ in range(2):
        memory.copy(memory.next_buffer(SHAPE), on_device)
    assert (first.recorded, second.recorded) == (1, 1)
    assert (first.waits, second.waits) == (0, 0)
    memory.next_buffer(SHAPE)
    assert (first.waits, second.waits) == (1, 0)


def test_a_larger_batch_gets_a_new_buffer(events: list[FakeEvent]) -> None:
    memory = PinnedMemory(torch.device("cuda"))
    small = memory.next_buffer((1, 3, 4, 4))
    large = memory.next_buffer(SHAPE)
    assert large.shape == SHAPE
    assert not np.shares_memory(small, large)
    assert events[0].waits == 0


@pytest.mark.usefixtures("events")
def test_float32_is_copied_and_the_memory_is_counted_in_bytes() -> None:
    memory = PinnedMemory(torch.device("cuda"))
    for shape in ((2, 1, 4, 4), (3, 1, 4, 4), (1, 1, 4, 4)):
        values = np.random.default_rng(0).standard_normal(shape, np.float32)
        on_device = torch.zeros(shape)
        buffer = memory.next_buffer(shape, torch.float32)
        assert buffer.dtype == np.float32
        buffer[:] = values
        assert torch.equal(memory.copy(buffer, on_device), torch.from_numpy(values))
        assert torch.equal(memory.copy(values, on_device), torch.from_numpy(values))
