"""``python -m tests.server.engine.faulty_server serve``: the server on engines out of this folder,
named by FAULTY.
"""

import os
import sys
from dataclasses import replace

from server.commands.cli import main
from server.engine_client import pool

HUNG_SECONDS = 8.0


class FaultyPool(pool.EnginePool):
    """Engines run the faulty module, and a batch hangs after `HUNG_SECONDS` already."""

    def __init__(self, configs, patience, **callbacks):
        module = f"tests.server.engine.{os.environ['FAULTY']}"
        super().__init__(configs, replace(patience, hung=HUNG_SECONDS), **callbacks, module=module)


if __name__ == "__main__":
    pool.EnginePool = FaultyPool
    sys.exit(main())
