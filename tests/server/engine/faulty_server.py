"""``python -m tests.server.engine.faulty_server serve``: a server whose engines fail.

The variable FAULTY names the module in this folder that runs as the engine.
"""

import os
import sys
from dataclasses import replace

from server.commands.cli import main
from server.supervision import engine_group, launch

HUNG_SECONDS = 8.0


class FaultyGroup(engine_group.EngineGroup):
    """Engines run the faulty module, and a batch counts as hung after `HUNG_SECONDS`."""

    def __init__(self, configs, patience, shared, on_restart):
        module = f"tests.server.engine.{os.environ['FAULTY']}"
        super().__init__(
            configs,
            replace(patience, batch_timeout=HUNG_SECONDS),
            shared,
            on_restart,
            module=module,
        )


if __name__ == "__main__":
    vars(launch)["EngineGroup"] = FaultyGroup  # in place of what it imported
    sys.exit(main())
