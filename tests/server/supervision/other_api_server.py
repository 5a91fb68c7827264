"""``python -m tests.server.supervision.other_api_server serve``: a server with other API processes.

The variable API_MODULE names the module that runs as an API process.
"""

import os
import sys

from server.commands.cli import main
from server.supervision import api_process

if __name__ == "__main__":
    api_process.MODULE = os.environ["API_MODULE"]
    sys.exit(main())
