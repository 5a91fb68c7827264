"""Bisecting against an oracle: which items are poison is known beforehand."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.device.errors import free_memory, is_lost, kind_of
from server.engine.execution.isolation import run_isolated
from server.errors import DeviceLost

POISONED = st.lists(st.booleans(), min_size=1, max_size=64)


def nothing() -> None:
    pass


@given(POISONED)
def test_the_poison_alone_fails(poisoned: list[bool]) -> None:
    runs = 0

    def run(items: Sequence[int]) -> list[int]:
        nonlocal runs
        runs += 1
        if any(poisoned[item] for item in items):
            raise ValueError("poison")
        return [item * item for item in items]

    isolated = run_isolated(run, range(len(poisoned)), nothing, kind_of)
    assert isolated.answers == [
        "error" if bad else item * item for item, bad in enumerate(poisoned)
    ]
    assert isolated.kinds == ({"error"} if any(poisoned) else set())
    assert runs <= 1 + 2 * sum(poisoned) * math.ceil(math.log2(len(poisoned)))


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_batch_that_does_not_fit_runs_in_parts_that_do(count: int, fits: int) -> None:
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

    isolated = run_isolated(run, range(count), free, kind_of)
    assert isolated.answers == list(range(count))
    assert max(sizes) <= fits
    assert isolated.largest == max(sizes)
    assert isolated.ran_out_together == (count > fits)
    assert isolated.kinds == ({"out-of-memory"} if count > fits else set())
    assert bool(freed) == (count > fits)


def test_memory_that_one_item_alone_exceeds_did_not_run_out_for_all_together() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if 3 in items:
            raise MemoryError
        return list(items)

    isolated = run_isolated(run, range(8), nothing, kind_of)
    assert isolated.answers.count("out-of-memory") == 1
    assert isolated.largest == 4
    assert not isolated.ran_out_together


def test_what_a_failed_run_held_is_gone_before_the_next() -> None:
    """An exception's traceback keeps the frames that it went through, and with them their tensors."""
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

    assert run_isolated(run, [1, 2, 3], nothing, kind_of).answers == [1, 2, 3]


def test_a_lost_device_is_not_asked_again() -> None:
    runs = 0

    def run(items: Sequence[int]) -> list[int]:
        nonlocal runs
        runs += 1
        raise DeviceLost

    with pytest.raises(DeviceLost):
        run_isolated(run, [1, 2], nothing, kind_of)
    assert runs == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # more than any machine can address
    assert kind_of(caught.value) == "out-of-memory"
    assert (
        kind_of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        == "out-of-memory"
    )
    assert kind_of(MemoryError()) == "out-of-memory"
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert kind_of(caught.value) == "error"
    free_memory()


def test_a_cpu_is_never_lost() -> None:
    assert not is_lost(torch.device("cpu"))
