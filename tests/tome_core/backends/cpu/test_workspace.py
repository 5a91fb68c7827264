from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tome_core.backends.cpu.workspace import Workspace

MB = 1 << 20
BYTES = torch.uint8


def test_a_block_is_reused_after_its_last_view_is_freed() -> None:
    workspace = Workspace()
    x = workspace.empty(4, MB, torch.float32)
    assert x.shape == (4, MB)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.data_ptr() % 64 == 0
    view = x.fill_(1)[3, 5:]
    address = x.data_ptr()
    del x
    assert workspace.free_bytes == 0
    assert view.eq(1).all()
    del view
    assert workspace.free_bytes == 16 * MB
    again = workspace.empty(3, 2 * MB, torch.bfloat16)
    assert again.data_ptr() == address
    assert workspace.free_bytes == 0


def test_the_smallest_block_that_fits_is_reused() -> None:
    workspace = Workspace()
    blocks = [workspace.empty(size, MB, BYTES) for size in (8, 2, 4)]
    address = blocks[2].data_ptr()
    del blocks
    assert workspace.empty(3, MB, BYTES).data_ptr() == address


def test_blocks_that_are_too_small_are_released() -> None:
    workspace = Workspace()
    small = [workspace.empty(size, MB, BYTES) for size in (1, 2, 3)]
    del small
    assert workspace.free_bytes == 6 * MB
    large = workspace.empty(4, MB, BYTES)
    assert workspace.free_bytes == 0
    del large
    assert workspace.free_bytes == 4 * MB
    workspace.clear()
    assert workspace.free_bytes == 0


def test_small_tensors_use_the_allocator() -> None:
    workspace = Workspace()
    workspace.empty(10, 10, torch.float32)
    assert workspace.empty(0, 10, torch.float32).shape == (0, 10)
    assert workspace.free_bytes == 0


def test_out_of_memory_raises_memory_error() -> None:
    with pytest.raises(MemoryError, match="can't allocate memory"):
        Workspace().empty(1 << 30, 1 << 20, BYTES)


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([MB // 4, MB]), st.integers(0, 5)), max_size=40
    )
)
def test_no_two_tensors_share_memory(steps: list[tuple[int, int, int]]) -> None:
    """Each tensor keeps its own number while others come and go."""
    workspace = Workspace()
    held = {}
    for number, (rows, width, place) in enumerate(steps):
        held[place] = number, workspace.empty(rows, width, torch.int32).fill_(number)
    for number, tensor in held.values():
        assert tensor.eq(number).all()


@given(st.lists(st.integers(4, 32), min_size=1, max_size=20))
def test_the_pool_never_exceeds_the_needs_of_the_largest_batch(
    batches: list[int],
) -> None:
    """A layer's input and output narrow and one tensor wide, at shrinking numbers of rows."""
    workspace = Workspace()
    for rows in batches:
        x = workspace.empty(rows, MB, BYTES)
        for left in range(rows, rows // 2, -3):
            wide = workspace.empty(left, 3 * MB, BYTES)
            x = workspace.empty(left, MB, BYTES)
        del x, wide
    assert workspace.free_bytes <= max(batches) * (2 + 2 * 3) * MB


@pytest.mark.parametrize("inference", [True, False])
def test_threads_share_one_workspace(inference: bool) -> None:
    workspace = Workspace()

    def work(number: int) -> bool:
        with torch.inference_mode(inference):
            tensors = [workspace.empty(1 + k % 3, MB, BYTES).fill_(number) for k in range(4)]
            return all(bool(tensor.eq(number).all()) for tensor in tensors)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
    assert workspace.free_bytes <= 8 * 4 * 3 * MB
