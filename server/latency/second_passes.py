"""How many images take a second pass, as observed: what admission expects of the next ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

# Of requests that have not been observed; it counts as so many images.
EXPECTED_SHARE = 0.25
_PRIOR_IMAGES = 8
_MEMORY = 256  # images that count; of earlier ones less and less
_MOST_KEYS = 1024  # clients choose margins, so their number needs a bound
_STEPS = 16  # shares are multiples of 1 / 16, so that the costs of a queue are few different ones


class SecondPasses:
    """The share of images that take a second pass, by model and margin."""

    def __init__(self) -> None:
        self._shares: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._shares)

    def observe(self, key: Hashable, is_second: bool) -> None:
        """Record whether an image took a second pass, or needed one."""
        share, images = self._shares.pop(key, (EXPECTED_SHARE, _PRIOR_IMAGES))
        images = min(images + 1, _MEMORY)
        share += (is_second - share) / images
        self._shares[key] = (share, images)
        if len(self._shares) > _MOST_KEYS:
            self._shares.popitem(last=False)

    def share(self, key: Hashable) -> float:
        """Return the share that is expected of the next images, from 0 to 1."""
        share, _ = self._shares.get(key, (EXPECTED_SHARE, 0))
        return round(share * _STEPS) / _STEPS
