"""The geometry of a spectrogram model: its window, patches and stride, as a file shows them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from server.catalog.entries import ModelSpec
from server.engine.loading.front_end import MEL_BINS
from server.errors import ConfigError

log = logging.getLogger("tome.engine")

Pair = tuple[int, int]

AST_STRIDE = 10
# Of the published models: AudioSet, ESC-50, Speech Commands. Several numbers of frames have the
# same patches.
_PUBLISHED_FRAMES = (1024, 512, 128)
_PUBLISHED_STRIDES = (10, 12, 14, 16)
_PUBLISHED_PATCH = (16, 16)  # of the stride AST_STRIDE


@dataclass(frozen=True)
class Geometry:
    """The window, patches and stride of a model.

    Attributes:
        frames: of one window.
        patch_size, stride: height and width.
        time_last: whether the input is ``(1, mel, frames)``, and not ``(1, frames, mel)``.
    """

    frames: int
    patch_size: Pair
    stride: Pair
    time_last: bool

    @property
    def size(self) -> Pair:
        """Height and width of the input."""
        return (MEL_BINS, self.frames) if self.time_last else (self.frames, MEL_BINS)

    @property
    def grid(self) -> Pair:
        """Rows and columns of patches."""
        rows = patches_along(self.size[0], self.patch_size[0], self.stride[0])
        return rows, patches_along(self.size[1], self.patch_size[1], self.stride[1])


def as_pair(value: Any) -> Pair:
    """Return one number twice, or two numbers."""
    if isinstance(value, int):
        return value, value
    first, second = value
    return int(first), int(second)


def patches_along(length: int, patch: int, stride: int) -> int:
    """Return the number of patches that fit into ``length``."""
    return (length - patch) // stride + 1


def find_geometry(
    spec: ModelSpec,
    patch_size: Pair,
    positions: int,
    prefix: int,
    *,
    time_last: bool,
) -> Geometry:
    """Return the geometry with which a file was trained.

    Args:
        spec: the entry, whose ``model_args`` may say the stride.
        patch_size: height and width, of the weights.
        positions, prefix: number of all positions and of prefix tokens.
        time_last: see `Geometry`.

    Raises:
        ConfigError: the positions fit no window of `MEL_BINS`, or the stride is not known.
    """
    is_guessed = time_last and "stride" not in spec.model_args
    if is_guessed and patch_size != _PUBLISHED_PATCH:
        raise ConfigError(
            f"model {spec.name} has patches of {patch_size[0]}x{patch_size[1]}, whose stride is not"
            " known: set model_args = { stride = [rows, columns] }; SSAST of frames is fine-tuned"
            " with [128, 1]"
        )
    default = AST_STRIDE if time_last else patch_size
    stride = as_pair(spec.model_args.get("stride", default))
    mel, time = (0, 1) if time_last else (1, 0)
    rows = patches_along(MEL_BINS, patch_size[mel], stride[mel])
    patches = positions - prefix
    if rows < 1 or patches % rows:
        advice = _advise_stride(patch_size, patches) if time_last else ""
        raise ConfigError(
            f"model {spec.name}: {patches} positions do not fit the {rows} patches of"
            f" {patch_size[0]}x{patch_size[1]} that {MEL_BINS} mel bins have with a stride of"
            f" {stride[mel]}{advice}"
        )
    frames = _frames(patches // rows, patch_size[time], stride[time])
    if is_guessed and frames not in _PUBLISHED_FRAMES:
        log.warning(
            "%s: the model is taken for one of %d frames with a stride of %d, which no published"
            " one has; if it has others, set model_args = { stride = ... }, or img_size",
            spec.name,
            frames,
            stride[time],
        )
    return Geometry(frames, patch_size, stride, time_last)


def _frames(columns: int, patch: int, stride: int) -> int:
    """Return the published number of frames that has ``columns`` patches, else the smallest."""
    for frames in _PUBLISHED_FRAMES:
        if patches_along(frames, patch, stride) == columns:
            return frames
    return (columns - 1) * stride + patch


def _advise_stride(patch_size: Pair, patches: int) -> str:
    for stride in _PUBLISHED_STRIDES:
        rows = patches_along(MEL_BINS, patch_size[0], stride)
        for frames in _PUBLISHED_FRAMES:
            if rows * patches_along(frames, patch_size[1], stride) == patches:
                return (
                    f"; they fit {frames} frames with a stride of {stride}: set model_args ="
                    f" {{ stride = {stride} }}"
                )
    return "; set the stride of the file's model, as model_args = { stride = [10, 10] }"
