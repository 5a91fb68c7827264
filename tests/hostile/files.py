"""All files as ``(name, bytes, status)``, where the status follows from the limits below."""

from __future__ import annotations

from tests.hostile.attacks import attacks
from tests.hostile.images import images

MAX_BYTES = 300_000
MAX_PIXELS = 1_000_000
MAX_SIDE = 4000
FILES: list[tuple[str, bytes, int]] = [*images(), *attacks()]
# Valid images of each format, which tests damage at random.
SEEDS = [body for name, body, status in FILES if status == 200 and len(body) < 5000]
SLUGS = {400: "bad-image", 413: "too-large", 415: "unsupported-format"}
