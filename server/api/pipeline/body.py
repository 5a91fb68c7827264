"""What the body of a request holds: one image, several files, or parameters and images."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from server.api.contract.params import Params
from server.api.pipeline.admission import Admission, BufferedInput, ImageContent, Reservation
from server.api.pipeline.multipart import FileParts


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


async def read_files(
    request: Request, content_type: str, admission: Admission, reservation: Reservation
) -> RequestImages:
    """Return the files of a multipart body.

    Raises:
        RequestError: the body is malformed, or has no image or too many.
        ClientDisconnect: the client has disconnected.
    """
    parts = FileParts(content_type)
    await admission.read_body(request, reservation, parts.feed)
    files = [BufferedInput(file, reservation, len(file)) for file in parts.finish()]
    return RequestImages(files, as_list=True)
