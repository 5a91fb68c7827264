"""Images as they come in, with the bytes that are counted for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.api.contract.params import Params
from server.api.pipeline.admission import Reservation
from server.errors import BadImage

# An encoded image; or pixels as the model takes them, float32 (C, H, W).
Image = bytes | npt.NDArray[np.float32]


@dataclass
class Upload:
    """One image, or a body of several, counted as ``size`` bytes of ``reservation`` until it is dropped."""

    content: Image
    reservation: Reservation
    size: int

    def encoded(self) -> bytes:
        """The content of an encoded image; empty once it is dropped."""
        assert isinstance(self.content, bytes)
        return self.content

    def forget(self) -> None:
        """Hold the content no longer; its bytes stay counted."""
        self.content = b""

    def drop(self) -> None:
        """It is decoded: give its bytes back."""
        self.reservation.release(self.size)
        self.content = b""
        self.size = 0


@dataclass(frozen=True)
class Asked:
    """What one body asks for: the same of each of ``images``, of which there is one at least."""

    params: Params
    images: list[Image]

    def take(self, body: Upload) -> list[Upload]:
        """Take the images out, each counted as an equal part of ``body``: in JSON no bytes belong to one alone."""
        share = body.size // len(self.images)
        uploads = [Upload(image, body.reservation, share) for image in self.images]
        self.images.clear()
        return uploads


def the_only(uploads: list[Upload]) -> Upload:
    """The one of ``uploads``. Raises `BadImage` if there are more."""
    if len(uploads) > 1:
        raise BadImage(
            f"the multipart body has {len(uploads)} files; there is one picture a request, so"
            " send one"
        )
    return uploads[0]
