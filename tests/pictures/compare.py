"""Compare what programs make of a picture: this repository, timm with Pillow, and a server."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
import timm.data
from PIL import Image, ImageOps

from server.imaging.decode import decode
from server.media.transforms import ImageTransform
from tests.pictures.generate import Picture, over_white

Pixels = npt.NDArray[np.uint8]

MEAN = timm.data.IMAGENET_DEFAULT_MEAN
MAX_PIXELS = 1_000_000
MAX_SIDE = 4000
# Without a crop all values are equal. Where a crop leaves out pixels, docs/images.md allows this.
SQUASHED = ImageTransform((3, 24, 32), "bicubic", 1.0, "squash")
GREY = ImageTransform((1, 24, 24), "bilinear", 1.0, "squash")
CROPPED = ImageTransform((3, 28, 28), "bicubic", 0.875, "center")
MAX_CROPPED_DIFFERENCE = 2


def timm_pixels(image: Image.Image, transform: ImageTransform) -> Pixels:
    """Return what timm's transform makes of ``image``, in grey if ``transform`` is."""
    channels = transform.size[0]
    if channels == 1:
        image = image.convert("L")
    reference = timm.data.create_transform(
        transform.size,
        is_training=False,
        use_prefetcher=True,  # uint8, before normalisation
        interpolation=transform.interpolation,
        crop_pct=transform.crop_pct,
        crop_mode=transform.crop_mode,
        mean=MEAN[:channels],  # fills borders
    )
    return np.asarray(reference(image))


def differences(picture: Picture) -> list[str]:
    """Return how decoding differs from what the picture shows, in words."""
    found = []
    for transform in (SQUASHED, GREY, CROPPED):
        pixels = decode(picture.body, transform, MAX_PIXELS, MAX_SIDE)
        expected = timm_pixels(Image.fromarray(picture.shows), transform)
        largest = int(np.abs(pixels.astype(int) - expected).max())
        if largest > (MAX_CROPPED_DIFFERENCE if transform == CROPPED else 0):
            found.append(f"{picture.name}: {transform.crop_mode} differs by {largest}")
    return found


def by_pillow(body: bytes) -> Pixels | None:
    """Return what Pillow alone makes of a file, upright, over white; None if it refuses it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(body)) as opened:
                image = ImageOps.exif_transpose(opened)
                if image.has_transparency_data:
                    return over_white(np.asarray(image.convert("RGBA")))
                return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def pillow_agrees(picture: Picture) -> bool:
    """Return whether Pillow alone shows the same picture."""
    pixels = by_pillow(picture.body)
    return pixels is not None and np.array_equal(pixels, picture.shows)
