"""What the clients send: pictures as files, and pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.photographs import encode, photograph
from benchmarks.wrk import Body, form

SIZE = 224  # pixels of a side of the model's input
TENSOR_IMAGES = 16
# The load of tensors has 128 images under way at a time; more would time the queue.
CONNECTIONS = 32
TENSOR_CONNECTIONS = 8
_NOISE_QUALITY = 85  # 38 kB
_PHOTOGRAPH_QUALITY = 75  # 48 kB


@dataclass(frozen=True)
class Content:
    """What one request carries.

    Attributes:
        description: for the report, without the size.
        data: a file, or the pixels ``uint8 (images, 3, 224, 224)``.
        content_type: of a file; that of pixels is up to the server.
        images: in a request.
        connections: of the load.
    """

    description: str
    data: bytes
    content_type: str
    images: int = 1
    connections: int = CONNECTIONS

    @property
    def is_tensor(self) -> bool:
        """Whether it is pixels rather than a file."""
        return self.content_type == "application/octet-stream"

    def bare(self) -> Body:
        """The data as the whole body."""
        return Body(self.data, self.content_type)

    def form(self) -> Body:
        """The data as the one file of a form, ``tensor`` or ``image``."""
        return form(self.data, "tensor" if self.is_tensor else "image")

    def infer_request(self) -> Body:
        """The pixels as an inference request of the Open Inference Protocol, as binary data."""
        tensor = {
            "name": "pixel_values",
            "datatype": "UINT8",
            "shape": [self.images, 3, SIZE, SIZE],
            "parameters": {"binary_data_size": len(self.data)},
        }
        message = json.dumps({"inputs": [tensor], "parameters": {"r": 0, "top_k": 5}}).encode()
        headers = (("Inference-Header-Content-Length", str(len(message))),)
        return Body(message + self.data, self.content_type, headers)


def noise() -> Content:
    """A JPEG that is expensive for its size, and needs no resizing."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    jpeg = encode(Image.fromarray(pixels), quality=_NOISE_QUALITY)
    return Content("JPEG of noise, 224 x 224", jpeg, "image/jpeg")


def camera_picture() -> Content:
    """A JPEG as a camera's, smaller, in the usual size of ImageNet."""
    jpeg = encode(photograph(500, 375), quality=_PHOTOGRAPH_QUALITY)
    return Content("JPEG photograph, 500 x 375", jpeg, "image/jpeg")


def small() -> Content:
    """A PNG of next to no cost."""
    png = encode(photograph(28, 28).convert("L"), "PNG")
    return Content("PNG of 28 x 28", png, "image/png")


def tensor() -> Content:
    """Pixels that need no decoding."""
    shape = (TENSOR_IMAGES, 3, SIZE, SIZE)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return Content(
        f"uint8 tensor of {TENSOR_IMAGES} images of 224 x 224",
        pixels.tobytes(),
        "application/octet-stream",
        TENSOR_IMAGES,
        TENSOR_CONNECTIONS,
    )


BODIES: dict[str, Callable[[], Content]] = {
    "noise": noise,
    "photograph": camera_picture,
    "small": small,
    "tensor": tensor,
}
