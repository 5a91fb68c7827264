"""Images and request bodies in memory, with the bytes that are reserved for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from server.api.contract.params import Params
from server.api.pipeline.admission import Reservation
from server.api.pipeline.base64_image import Base64Image
from server.errors import BadImage

# An encoded image; or normalised pixels, which the model takes as they are, float32 (C, H, W).
ParsedImage = bytes | npt.NDArray[np.float32]
ImageContent = ParsedImage | Base64Image


@dataclass
class BufferedInput:
    """One image, or a whole body, in memory; ``size`` bytes of ``reservation`` count for it."""

    content: ImageContent
    reservation: Reservation
    size: int

    def encoded_bytes(self) -> bytes:
        """Return the encoded image or the body; empty bytes once it is cleared.

        Raises:
            BadImage: the content is to be base64, and is not.
        """
        if isinstance(self.content, Base64Image):
            return self.content.decode()
        assert isinstance(self.content, bytes)
        return self.content

    def clear(self) -> None:
        """Drop the content. Its bytes still count: parts of it are in memory elsewhere."""
        self.content = b""

    def release(self) -> None:
        """Drop the content, and give its bytes back to the reservation."""
        self.reservation.release(self.size)
        self.content = b""
        self.size = 0


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose parameters and images, at least one, were parsed from its body."""

    params: Params
    images: list[ParsedImage]

    def take_images(self, body: BufferedInput) -> list[BufferedInput]:
        """Move the images out. Each counts as an equal share of ``body``, JSON included."""
        share = body.size // len(self.images)
        images = [BufferedInput(content, body.reservation, share) for content in self.images]
        self.images.clear()
        return images


@dataclass(frozen=True)
class RequestImages:
    """The images of one request, at least one; ``as_list``: its response has a list of results."""

    images: list[BufferedInput]
    as_list: bool

    def single(self) -> BufferedInput:
        """Return the only image. Raises `BadImage` if there are more."""
        if len(self.images) > 1:
            raise BadImage(f"the body has {len(self.images)} files, but this route takes one")
        return self.images[0]
