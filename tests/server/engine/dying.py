"""An engine process that ends before it is ready; tests run it in place of `server.engine`."""

import sys

if __name__ == "__main__":
    sys.exit(7)
