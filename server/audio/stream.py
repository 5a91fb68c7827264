"""The part of a sound's file that the decoder reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stream:
    """The sound of a file, without what its samples do not need.

    Attributes:
        format: one of `server.audio.formats.FORMATS`.
        body: a file of that format.
    """

    format: str
    body: bytes
