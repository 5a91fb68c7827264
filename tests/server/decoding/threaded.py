"""A decoder whose import starts a thread."""

from __future__ import annotations

import threading
import time

from tests.server.decoding.decoders import decode

__all__ = ["decode"]

threading.Thread(target=time.sleep, args=(1_000,), daemon=True).start()
