"""Isolation of failures, checked against items that are known to make a run fail."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.device import errors
from server.engine.device.errors import classify_error, free_memory, is_lost
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.isolation import run_isolated
from server.engine.scheduling.scheduler import ScheduledJob
from server.errors import DeviceLost
from server.ipc.messages import Failure, Job
from server.latency.cost import ImageCost
from tome_core.schedule import Schedule

EXACT = Schedule.constant(0)

FAILING_ITEMS = st.lists(st.booleans(), min_size=1, max_size=64)


def jobs(count: int) -> list[ScheduledJob]:
    return [
        ScheduledJob(
            Job(number, 0, "m", (EXACT,), 1, 0.0, request_id=f"request-{number}"),
            EXACT,
            ImageCost(1.0, 1.0, 1.0),
        )
        for number in range(count)
    ]


def ids(batch: Sequence[ScheduledJob]) -> list[int]:
    return [scheduled.job.id for scheduled in batch]


def outputs(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
    """Return an output for each job that shows its number."""
    return [ImageOutput((), (number,), finite=True) for number in ids(batch)]


@given(FAILING_ITEMS)
def test_only_the_items_at_fault_fail(failing: list[bool]) -> None:
    runs = 0

    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        nonlocal runs
        runs += 1
        if any(failing[number] for number in ids(batch)):
            raise ValueError("injected")
        return outputs(batch)

    batch = jobs(len(failing))
    result = run_isolated(run, batch)
    assert result.answers == [
        Failure.FAILED if fails else output
        for fails, output in zip(failing, outputs(batch), strict=True)
    ]
    assert result.failures == ({Failure.FAILED} if any(failing) else set())
    assert runs <= 1 + 2 * sum(failing) * math.ceil(math.log2(len(failing)))


@given(st.integers(1, 64), st.integers(1, 64))
def test_a_batch_that_does_not_fit_into_memory_runs_in_parts_that_fit(
    count: int, fits: int
) -> None:
    sizes = []

    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return outputs(batch)

    result = run_isolated(run, jobs(count))
    assert result.answers == outputs(jobs(count))
    assert max(sizes) <= fits
    assert result.largest == max(sizes)
    assert result.batch_too_large == (count > fits)
    assert result.failures == ({Failure.OUT_OF_MEMORY} if count > fits else set())


def test_an_item_that_does_not_fit_alone_does_not_make_the_batch_too_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    freed = []
    monkeypatch.setattr(errors, "free_memory", lambda: freed.append(True))

    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        if 3 in ids(batch):
            raise MemoryError
        return outputs(batch)

    result = run_isolated(run, jobs(8))
    assert result.answers.count(Failure.OUT_OF_MEMORY) == 1
    assert result.largest == 4
    assert not result.batch_too_large
    assert len(freed) == 4  # after the failures of 8, 4, 2 and 1


def test_memory_of_a_failed_run_is_free_before_the_next_run() -> None:
    """The traceback of an exception keeps its frames, and with them their tensors."""
    held: list[int] = []

    class Activation:
        def __init__(self) -> None:
            held.append(id(self))

        def __del__(self) -> None:
            held.remove(id(self))

    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        assert not held
        activation = Activation()
        if len(batch) > 1:
            raise MemoryError(activation)
        return outputs(batch)

    assert run_isolated(run, jobs(3)).answers == outputs(jobs(3))


def test_the_log_names_the_request_of_a_job_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        if 1 in ids(batch):
            raise ValueError("injected")
        return outputs(batch)

    run_isolated(run, jobs(2))
    together, alone = caplog.records
    assert together.getMessage() == "the model failed on 2 images: injected"
    assert alone.getMessage() == "the model failed on one image"
    assert vars(alone)["request_id"] == "request-1"
    assert alone.exc_info


def test_nothing_is_retried_on_a_lost_device() -> None:
    runs = 0

    def run(batch: Sequence[ScheduledJob]) -> list[ImageOutput]:
        nonlocal runs
        runs += 1
        raise DeviceLost

    with pytest.raises(DeviceLost):
        run_isolated(run, jobs(2))
    assert runs == 1


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # more than any machine can address
    assert classify_error(caught.value) == Failure.OUT_OF_MEMORY
    assert (
        classify_error(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
        == Failure.OUT_OF_MEMORY
    )
    assert classify_error(MemoryError()) == Failure.OUT_OF_MEMORY
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2) @ torch.zeros(3)
    assert classify_error(caught.value) == Failure.FAILED
    free_memory()


def test_a_cpu_is_never_lost() -> None:
    assert not is_lost(torch.device("cpu"))
