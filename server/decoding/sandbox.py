"""What a decode worker gives up before it reads the first body, for good.

Its decoder is a large C library that reads hostile bytes. Should one of them take it over, it has
the memory of its process and the socket to the API process, and nothing else.
"""

from __future__ import annotations

import math
import resource
import signal
from collections.abc import Callable
from pathlib import Path

from server.decoding import kernel, landlock, seccomp
from server.media.modality import Modality

# The longest sound that the defaults allow takes 200 MB, of which the libraries map half. A video
# of the largest frames, 16 of them for reference, in H.264 of 10 bits without subsampling of
# colours, takes 540 MB with 15 windows; of 8 bits with subsampling, as nearly all videos are,
# 350 MB. The rest is for a body of 64 MB, which is held twice, and for the libraries of sound.
ADDRESS_SPACE_BYTES = {Modality.AUDIO: 600_000_000, Modality.VIDEO: 1_000_000_000}
_OPEN_FILES = 16  # the standard streams, the socket, and what one task brings or maps
_MOST_LIKELY_KILLED = "1000"


def confine(address_space: int) -> list[str]:
    """Give up everything that decoding does not need. The process must have one thread.

    Args:
        address_space: most bytes of memory that the process maps.

    Returns:
        What the system does not permit, each with its reason: containers often forbid namespaces,
        and old kernels have no Landlock.

    Raises:
        OSError: a limit cannot be set.
    """
    kernel.forbid_new_privileges()
    missing = _try_each(
        {
            "precedence when memory is short": _be_killed_first,
            "namespaces": _leave_namespaces,
            "capabilities": kernel.drop_capabilities,
            "Landlock": landlock.forbid_everything,
        }
    )
    kernel.die_with_parent(signal.SIGKILL)  # after the privileges, with which it is forgotten
    _limit(resource.RLIMIT_AS, address_space)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_NOFILE, _OPEN_FILES)
    missing += _try_each({"seccomp": seccomp.forbid_files_and_other_processes})
    return missing


def limit_cpu(seconds: float) -> None:
    """Let the kernel end this process (SIGXCPU) after ``seconds`` more of CPU time, rounded up."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = usage.ru_utime + usage.ru_stime
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used + seconds)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _be_killed_first() -> None:
    """Let the kernel end this process rather than the API or an engine when memory is short."""
    Path("/proc/self/oom_score_adj").write_text(_MOST_LIKELY_KILLED)


def _leave_namespaces() -> None:
    """Leave the network, and the users: the latter needs no privilege, and permits the former.

    A process of another user namespace can neither trace the API process nor read its environment.
    """
    kernel.unshare(kernel.NEW_USER | kernel.NEW_NETWORK | kernel.NEW_IPC)


def _limit(kind: int, value: int) -> None:
    """Set a limit for good."""
    _, hard = resource.getrlimit(kind)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _try_each(steps: dict[str, Callable[[], None]]) -> list[str]:
    """Call each of ``steps``; return the names of those that fail, with the reason."""
    missing = []
    for name, step in steps.items():
        try:
            step()
        except OSError as error:
            missing.append(f"{name}: {error.strerror}")
    return missing
