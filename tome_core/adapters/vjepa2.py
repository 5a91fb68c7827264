"""V-JEPA 2, whose blocks are timm's ``EvaBlock`` and whose pooler attends to merged tokens."""

from __future__ import annotations

from tome_core.adapters.eva import EvaAdapter
from tome_core.networks.vjepa2 import VJepa2


class VJepa2Adapter(EvaAdapter):
    """The adapter of a `VJepa2` (see `tome_core.model.Adapter`).

    It differs from timm's ``Eva`` in its embedding, in the angles of its rotary positions and in
    its pooler, in each of whose attentions a token of s patches counts s times.
    """

    network_type = VJepa2
