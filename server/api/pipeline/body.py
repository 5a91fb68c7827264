"""The body of a request in memory, and the images that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from server.api.contract.params import Params
from server.api.pipeline.admission import Admission, Reservation
from server.api.pipeline.base64_image import Base64Image
from server.api.pipeline.json_images import OBJECT_START, check_json_type
from server.api.pipeline.multipart import FileParts

# An encoded image, or one in base64; or normalised pixels, which the model takes as they are,
# float32 (C, H, W).
ImageContent = bytes | Base64Image | npt.NDArray[np.float32]


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

    def split(self, images: Sequence[ImageContent]) -> list[BufferedInput]:
        """Return the ``images`` that were parsed from this body. All its bytes count for them."""
        sizes = [image.nbytes if isinstance(image, np.ndarray) else len(image) for image in images]
        total = max(sum(sizes), 1)
        return [
            BufferedInput(image, self.reservation, self.size * size // total)
            for image, size in zip(images, sizes, strict=True)
        ]

    def clear(self) -> None:
        """Drop the content. Its bytes still count: parts of it are in memory elsewhere."""
        self.content = b""

    def release(self) -> None:
        """Drop the content, and give its bytes back to the reservation."""
        self.reservation.release(self.size)
        self.content = b""
        self.size = 0


@dataclass(frozen=True)
class RequestImages:
    """The images of one request, at least one.

    Attributes:
        as_list: whether its response has a list of results.
        is_json: whether the one image is a JSON body, from which the images are still to be parsed.
    """

    images: list[BufferedInput]
    as_list: bool
    is_json: bool = False


@dataclass(frozen=True)
class ParsedRequest:
    """A request whose parameters and images, at least one, were parsed from its body."""

    params: Params
    images: list[ImageContent]


async def read_body(
    request: Request, admission: Admission, reservation: Reservation
) -> BufferedInput:
    """Return the whole body. Raises what `Admission.read_body` raises."""
    chunks: list[bytes] = []
    await admission.read_body(request, reservation, chunks.append)
    content = b"".join(chunks)
    return BufferedInput(content, reservation, len(content))


async def read_images(
    request: Request, admission: Admission, reservation: Reservation
) -> RequestImages:
    """Return the image that is the body, or the images of a multipart body, or a JSON body.

    Raises:
        RequestError: the body is malformed, or has no image or too many.
        ClientDisconnect: the client has disconnected.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.lstrip().lower().startswith("multipart/"):
        parts = FileParts(content_type)
        await admission.read_body(request, reservation, parts.feed)
        files = [BufferedInput(file, reservation, len(file)) for file in parts.finish()]
        return RequestImages(files, as_list=True)
    body = await read_body(request, admission, reservation)
    is_json = OBJECT_START.match(body.encoded_bytes()) is not None
    if is_json:
        check_json_type(content_type)
    return RequestImages([body], as_list=False, is_json=is_json)
