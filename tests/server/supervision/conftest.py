"""The runner of the tiny model in this process, for expected results."""

from tests.server.engine.conftest import runner, tiny

__all__ = ["runner", "tiny"]
