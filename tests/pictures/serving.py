"""What a server and the command line make of a picture, and what they should."""

from __future__ import annotations

import subprocess
import sys

import httpx
import numpy as np
import numpy.typing as npt
from PIL import Image

from server.catalog.entries import read_catalog
from server.commands.offline import load_runner, run_one
from server.engine.execution.image_input import ImageInput
from server.media.transforms import ImageTransform
from server.settings import ModelSettings
from tests.pictures.compare import timm_pixels
from tests.pictures.generate import Picture
from tome_core.schedule import Schedule

Features = npt.NDArray[np.float32]

UNMERGED = Schedule.parse("0")
# Of the largest feature. Batches of other shapes round otherwise, most in bfloat16; and of pictures
# that are not square a crop leaves out pixels, so that values may differ by 1 (docs/images.md).
TOLERANCE = 0.05
TIMEOUT = 60


class BundledModel:
    """The bundled model in this process."""

    def __init__(self) -> None:
        self._runner = load_runner(ModelSettings(threads=1), read_catalog(None, ())[0])

    def features(self, picture: Picture) -> Features:
        """What is right: of the pixels that timm makes of what the picture shows."""
        transform = self._runner.model.transform
        assert isinstance(transform, ImageTransform)
        pixels = timm_pixels(Image.fromarray(picture.shows), transform)
        outputs = self._runner.run([ImageInput(pixels, UNMERGED, 0, "features")])
        return np.frombuffer(outputs[0].features, "<f4")

    def features_by_command(self, picture: Picture) -> Features:
        """What the commands ``classify`` and ``visualize`` compute for a file."""
        output, _ = run_one(self._runner, picture.body, UNMERGED, 0, "features")
        return np.frombuffer(output.features, "<f4")


def features_by_server(client: httpx.Client, picture: Picture) -> Features:
    """What a server answers."""
    headers = {"Accept": "application/octet-stream"}
    response = client.post("/embed", params={"r": 0}, content=picture.body, headers=headers)
    response.raise_for_status()
    return np.frombuffer(response.content, "<f4")


def are_near(given: Features, expected: Features) -> bool:
    """Return whether two features are those of the same picture."""
    limit = TOLERANCE * np.abs(expected).max()
    return given.shape == expected.shape and bool(np.abs(given - expected).max() <= limit)


def best_by_command(body: bytes) -> str:
    """Return the best class that ``tome-serve classify``, in a process, prints for its input."""
    command = [sys.executable, "-m", "server", "classify", "-", "--r", "0"]
    ended = subprocess.run(command, input=body, capture_output=True, check=True, timeout=TIMEOUT)
    return ended.stdout.decode().splitlines()[0].split(maxsplit=1)[1]


def best_by_server(client: httpx.Client, body: bytes) -> str:
    """Return the best class that a server answers."""
    response = client.post("/classify", params={"r": 0}, content=body)
    response.raise_for_status()
    return str(response.json()["predictions"][0]["label"])
