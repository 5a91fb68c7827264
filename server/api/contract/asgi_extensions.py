"""What this server's connections tell the application, in an ASGI scope's ``extensions``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

# The connection reads and discards the rest of a body itself, before it closes.
LINGERING_CLOSE = "tome.lingering_close"
# The value is the `ClientConnection`: the application need not call ``receive`` to learn of its
# end, which takes a task that waits.
CLIENT_CONNECTION = "tome.client_connection"


class ClientConnection(Protocol):
    """The connection of the request in flight.

    Attributes:
        disconnected: whether it has ended.
        on_disconnect: called when it ends; None while nobody needs to know.
    """

    disconnected: bool
    on_disconnect: Callable[[], object] | None

    @property
    def body_arrived(self) -> bool:
        """Whether the whole body of the request is in memory."""
        ...
