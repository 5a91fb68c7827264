"""The request parameters that Triton reserves: which are supported, and which are refused.

https://github.com/triton-inference-server/server, ``docs/protocol/extension_*.md``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import InvalidParameter

_UNSUPPORTED = {
    "priority": "requests are served by their deadline; give timeout or deadline_ms",
    "sequence_id": "models keep no state between requests",
    "sequence_start": "models keep no state between requests",
    "sequence_end": "models keep no state between requests",
}
# The values with which a client says that it uses no such extension.
_NEUTRAL = (0, "", "0", False)
_MICROSECONDS_PER_MILLISECOND = 1000
_LONGEST_TIMEOUT = 10**14  # three years; longer ones mean that there is none


def replace_triton_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with Triton's ``timeout``, in microseconds, as ``deadline_ms``.

    Parameters of extensions that are not supported are left out if their value is neutral.

    Raises:
        InvalidParameter: an extension is not supported, or the timeout is not valid.
    """
    replaced = dict(parameters)
    for name, reason in _UNSUPPORTED.items():
        if replaced.pop(name, 0) not in _NEUTRAL:
            raise InvalidParameter(
                f"Triton's {name} is not supported: {reason}",
                parameter=name,
            )
    timeout = replaced.pop("timeout", 0)
    if type(timeout) is not int or timeout < 0:
        raise InvalidParameter(
            "timeout must be a number of microseconds, 0 for none", parameter="timeout"
        )
    if timeout:
        if "deadline_ms" in replaced:
            raise InvalidParameter(
                "timeout and deadline_ms both limit the time; give one", parameter="timeout"
            )
        replaced["deadline_ms"] = min(timeout, _LONGEST_TIMEOUT) / _MICROSECONDS_PER_MILLISECOND
    return replaced
