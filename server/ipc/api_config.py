"""The configuration of an API process."""

from __future__ import annotations

from dataclasses import dataclass

from server.ipc.board import BoardSize
from server.settings import Settings


@dataclass(frozen=True)
class ApiConfig:
    """The configuration of an API process, which is the first message to it.

    Attributes:
        keys: the API keys; without any, every request passes.
        worker: its index.
        board: the size of the board.
        listeners: descriptors of the listening sockets, which it inherits.
        metrics_listeners: of those on the port of the metrics; none if they have no port of their
            own.
        admin_keys: the keys of /admin; without any, there are no such paths.
    """

    settings: Settings
    keys: tuple[str, ...]
    worker: int
    board: BoardSize
    listeners: tuple[int, ...]
    metrics_listeners: tuple[int, ...] = ()
    admin_keys: tuple[str, ...] = ()
