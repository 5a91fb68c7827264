"""``python -m server``, the same as ``tome-serve``."""

import sys

from server.commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
