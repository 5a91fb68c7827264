"""What a worker may not do, tried in one, after it has confined itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.decoding.pool import DecodePool
from server.decoding.process import DecodeProcess
from server.decoding.sandbox import ADDRESS_SPACE_BYTES
from server.errors import BadMedia
from server.media.modality import Modality
from tests.server.decoding.attempts import ALLOWED
from tests.server.decoding.conftest import SharedPool
from tests.server.decoding.pools import (
    DECODER,
    PATIENCE,
    TRANSFORM,
    children,
    running_pool,
)

# The outcomes of attempts, by what prevents them.
LIMITS = {
    "raise a limit": {"ValueError", "EPERM"},
    "allow files": {"ValueError", "EPERM"},
    "write to memory": {"EFBIG"},
    "shrink the memory": {"EPERM"},
    "change the body": {"EPERM"},
    "open many files": {"EMFILE"},
    "have three descriptors": {ALLOWED},
    "get a signal to end": {ALLOWED},
}
LANDLOCK = {
    "make a folder": {"EACCES"},
}
SECCOMP = {
    "read a file": {"EPERM"},
    "write a file": {"EPERM"},
    "list a folder": {"EPERM"},
    "read the parent's environment": {"EPERM"},
    "change a mode": {"EPERM"},
    "open a socket": {"EPERM"},
    "open a Unix socket": {"EPERM"},
    "fork": {"EPERM"},
    "execute": {"EPERM"},
    "signal the parent": {"EPERM"},
    "limit the parent": {"EPERM"},
    "trace the parent": {"EPERM"},
    "share memory": {"EPERM"},
}


async def _missing() -> str:
    """What this system does not permit."""
    process = DecodeProcess({Modality.AUDIO: DECODER}, ADDRESS_SPACE_BYTES[Modality.AUDIO])
    ready = await process.wait_until_ready(PATIENCE)
    await process.close()
    return "; ".join(ready.missing)


@pytest.fixture(scope="module")
def missing() -> str:
    return asyncio.run(_missing())


async def _outcome(pool: DecodePool, attempt: str) -> str:
    with pytest.raises(BadMedia) as told:
        await pool.decode(f"attempt {attempt}".encode(), TRANSFORM)
    return told.value.detail


@pytest.mark.parametrize(
    ("confinement", "expected"),
    [("limits", LIMITS), ("Landlock", LANDLOCK), ("seccomp", SECCOMP)],
    ids=["limits", "landlock", "seccomp"],
)
def test_what_is_forbidden_fails(
    shared: SharedPool, missing: str, confinement: str, expected: dict[str, set[str]]
) -> None:
    if confinement in missing:
        pytest.skip(missing)
    for attempt, outcomes in expected.items():
        outcome = shared.runner.run(_outcome(shared.pool, attempt))
        assert outcome in outcomes, attempt


def _status(worker: int) -> dict[str, str]:
    lines = Path(f"/proc/{worker}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def test_a_worker_has_no_privileges_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_API_KEYS", "secret")

    async def main() -> None:
        before = children()
        async with running_pool():
            (worker,) = children() - before
            status = _status(worker)
            assert status["NoNewPrivs"] == "1"
            assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
            assert status["Threads"] == "1"
            environment = Path(f"/proc/{worker}/environ").read_bytes()
            assert b"TOME" not in environment

    asyncio.run(main())


def test_a_worker_has_a_network_of_its_own(missing: str) -> None:
    if "namespaces" in missing:
        pytest.skip(missing)

    async def main() -> None:
        before = children()
        async with running_pool():
            (worker,) = children() - before
            theirs = Path(f"/proc/{worker}/ns/net").readlink()
            assert theirs != Path("/proc/self/ns/net").readlink()

    asyncio.run(main())
