"""Reads the body of a request as it arrives, and takes the images out of it."""

from __future__ import annotations

from starlette.requests import Request

from server.api.pipeline.admission import Admission, Reservation
from server.api.pipeline.cancellation import cancel_on_disconnect
from server.api.pipeline.decode_pool import DecodePool
from server.api.pipeline.inputs import BufferedInput, RequestImages
from server.api.pipeline.json_images import JsonImages, is_json_object, parse_json_images
from server.api.pipeline.multipart import FileParts, is_multipart


class BodyReader:
    """Reads bodies within the limits of an `Admission`. Both methods raise what it raises."""

    def __init__(self, admission: Admission, decode_pool: DecodePool) -> None:
        self._admission = admission
        self._decode_pool = decode_pool

    async def read(self, request: Request, reservation: Reservation) -> BufferedInput:
        """Return the whole body."""
        chunks: list[bytes] = []
        await self._admission.read_body(request, reservation, chunks.append)
        content = b"".join(chunks)
        return BufferedInput(content, reservation, len(content))

    async def read_images(self, request: Request, reservation: Reservation) -> RequestImages:
        """Return the image that is the body, or the images of a multipart or JSON body.

        Raises:
            RequestError: the body is malformed, or has no image or too many.
            ClientDisconnect: the client has disconnected.
        """
        content_type = request.headers.get("content-type")
        if content_type is not None and is_multipart(content_type):
            parts = FileParts(content_type)
            await self._admission.read_body(request, reservation, parts.feed)
            files = [BufferedInput(file, reservation, len(file)) for file in parts.finish()]
            return RequestImages(files, as_list=True)
        body = await self.read(request, reservation)
        if is_json_object(content_type, body.encoded_bytes()):
            return await cancel_on_disconnect(request.receive, self._parse_json(body))
        return RequestImages([body], as_list=False)

    async def _parse_json(self, body: BufferedInput) -> RequestImages:
        """Take the images out of a JSON body. Each counts as the bytes of its base64."""

        def parse_body() -> JsonImages:
            return parse_json_images(body.encoded_bytes())

        try:
            parsed = await self._decode_pool.run(parse_body)
        finally:
            body.clear()
        reservation = body.reservation
        images = [BufferedInput(image, reservation, len(image.text)) for image in parsed.images]
        return RequestImages(images, parsed.as_list)
