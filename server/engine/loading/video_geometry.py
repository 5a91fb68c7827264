"""The geometry of a model of video: its frames, tubelets and patches, as a file shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from server.catalog.entries import ModelSpec
from server.engine.loading.spectrogram_geometry import as_pair
from server.errors import ConfigError

Pair = tuple[int, int]

PATCHES = "patch_embed.proj.weight"
_PREFIX_TOKENS = ("cls_token", "reg_token")
# Of most published models.
_SIZE = (224, 224)
_FRAMES = 16


@dataclass(frozen=True)
class Geometry:
    """The clips of a model.

    Attributes:
        frames: T of a clip.
        tubelet: frames of a tubelet.
        size: height and width of a frame.
        patch_size: height and width.
    """

    frames: int
    tubelet: int
    size: Pair
    patch_size: Pair

    @property
    def tokens(self) -> int:
        """Tubelets of a clip."""
        return self.frames // self.tubelet * _patches(self.size, self.patch_size)


def _patches(size: Pair, patch_size: Pair) -> int:
    """Return the patches of a frame."""
    return (size[0] // patch_size[0]) * (size[1] // patch_size[1])


def find_geometry(spec: ModelSpec, tensors: Mapping[str, Tensor]) -> Geometry:
    """Return the geometry with which a file was trained.

    The weights of the embedding say what a tubelet is. The number of positions says how many there
    are; ``img_size`` and ``frames`` of the entry decide between several clips of that many, and so
    does what most published models have. Without positions they alone decide.

    Args:
        spec: the entry, whose ``model_args`` may have ``frames``.
        tensors: with timm's names.

    Raises:
        ConfigError: no clip has as many tubelets as the file has positions.
    """
    tubelet, *patch = tensors[PATCHES].shape[-3:]
    patch_size = as_pair(patch)
    size = as_pair(spec.img_size) if spec.img_size else None
    frames = spec.model_args.get("frames")
    expected = _count_positions(tensors, spec.model_args)
    for geometry in _candidates(frames, tubelet, size, patch_size, expected):
        if expected in (None, geometry.tokens):
            return geometry
    raise ConfigError(
        f"model {spec.name}: the {expected} positions of the file fit no clip of"
        f" {_describe(frames, size)} in tubelets of {tubelet}x{patch_size[0]}x{patch_size[1]};"
        " set img_size and model_args = { frames = ... } to those of the file's model, whose"
        " positions are not resized"
    )


def _count_positions(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> int | None:
    """Return the number of positions of tubelets; None if the file has none."""
    positions = tensors.get("pos_embed")
    if positions is None:
        return None
    if arguments.get("no_embed_class"):
        return positions.shape[1]
    return positions.shape[1] - sum(
        tensors[name].shape[1] for name in _PREFIX_TOKENS if name in tensors
    )


def _candidates(
    frames: int | None,
    tubelet: int,
    size: Pair | None,
    patch_size: Pair,
    expected: int | None,
) -> list[Geometry]:
    """Return the clips that the entry allows, the likeliest first."""
    candidates = [Geometry(frames or _FRAMES, tubelet, size or _SIZE, patch_size)]
    if expected is None:
        return candidates
    if frames is None:
        times = expected // max(1, _patches(size or _SIZE, patch_size))
        candidates.append(Geometry(times * tubelet, tubelet, size or _SIZE, patch_size))
    if size is None:
        side = math.isqrt(expected * tubelet // (frames or _FRAMES))
        square = (side * patch_size[0], side * patch_size[1])
        candidates.append(Geometry(frames or _FRAMES, tubelet, square, patch_size))
    return candidates


def _describe(frames: int | None, size: Pair | None) -> str:
    described = f"{frames} frames" if frames else "any number of frames"
    return described + (f" of {size[0]} x {size[1]} pixels" if size else "")
