"""Isolation of failures, checked against items that are known to make a run fail."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.device.errors import classify_error, free_memory, is_lost
from server.engine.execution.isolation import run_isolated
from server.errors import DeviceLost

FAILING_ITEMS = st.lists(st.booleans(), min_size=1, max_size=64)


def free_nothing() -> None:
    pass


@given(FAILING_ITEMS)
def test_only_the_items_at_fault_fail(failing: list[bool]) -> None:
    runs = 0

    def run(items: Sequence[int]) -> list[int]:
        nonlocal runs
        runs += 1
        if any(failing[item] for item in items):
            raise ValueError("injected")
        return [item * item for item in items]

    result = run_isolated(run, range(len(failing)), free_nothing, classify_error)
    assert result.answers == [
        "error" if fails else item * item for item, fails in enumerate(failing)
    ]
    assert result.failures == ({"error"} if any(failing) else set())
    assert runs <= 1 + 2 * sum(failing) * math.ceil(math.log2(len(failing)))


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_batch_that_does_not_fit_into_memory_runs_in_parts_that_fit(
    count: int, fits: int
) -> None:
    sizes = []
    freed = 0

    def free() -> None:
        nonlocal freed
        freed += 1

    def run(items: Sequence[int]) -> list[int]:
        if len(items) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(items))
        return list(items)

    result = run_isolated(run, range(count), free, classify_error)
    assert result.answers == list(range(count))
    assert max(sizes) <= fits
    assert result.largest == max(sizes)
    assert result.batch_too_large == (count > fits)
    assert result.failures == ({"out-of-memory"} if count > fits else set())
    assert bool(freed) == (count > fits)


def test_an_item_that_does_not_fit_alone_does_not_make_the_batch_too_large() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise MemoryError
        return list(items)

    result = run_isolated(run, range(8), free_nothing, classify_error)
    assert result.answers.count("out-of-memory") == 1
    assert result.largest == 4
    assert not result.batch_too_large


def test_memory_of_a_failed_run_is_free_before_the_next_run() -> None:
    """The traceback of an exception keeps its frames, and with them their tensors."""
    held: list[int] = []

    class Activation:
        def __init__(self) -> None:
            held.append(id(self))

        def __del__(self) -> None:
            held.remove(id(self))

    def run(items: Sequence[int]) -> list[int]:
        assert not held
        activation = Activation()
        if len(items) > 1:
            raise MemoryError(activation)
        return list(items)

    assert run_isolated(run, [1, 2, 3], free_nothing, classify_error).answers == [1, 2, 3]


def test_nothing_is_retried_on_a_lost_device() -> None:
    runs = 0

    def run(items: Sequence[int]) -> list[int]:
        nonlocal runs
        runs += 1
        raise DeviceLost

    with pytest.raises(DeviceLost):
        run_isolated(run, [1, 2], free_nothing, classify_error)
    assert runs == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # more than any machine can address
    assert classify_error(caught.value) == "out-of-memory"
    assert (
        classify_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        == "out-of-memory"
    )
    assert classify_error(MemoryError()) == "out-of-memory"
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert classify_error(caught.value) == "error"
    free_memory()


def test_a_cpu_is_never_lost() -> None:
    assert not is_lost(torch.device("cpu"))
