"""``python -m tests.server.supervision.dying_api_server serve``: API processes end at once."""

import sys

from server.commands.cli import main
from server.supervision import api_process

if __name__ == "__main__":
    api_process.MODULE = "tests.server.engine.dying"
    sys.exit(main())
