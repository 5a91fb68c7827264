"""From a decoded frame to an upright image in RGB.

The matrix and the range that the video declares are applied; where it declares none, BT.601 in the
limited range, as FFmpeg does, with which training data are decoded. Transfer curves stay as they
are, that of HDR too. Transparency is ignored, interlaced frames stay so, and pixels that are not
square count as if they were: published pipelines do none of it.
"""

from __future__ import annotations

import struct

from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from PIL import Image

# By their numbers (ISO/IEC 23091-2, table 4), which FFmpeg shares: those that its scaler converts.
_RGB = 0
_MATRICES = {_RGB, 1, 4, 5, 6, 7, 9}
_UNSPECIFIED = 2

# A display matrix is 3 x 3 (ISO/IEC 14496-12, section 6.2.2); its upper left part rotates.
_DISPLAY_MATRIX = struct.Struct("=9i")
_Transpose = Image.Transpose
_TRANSPOSITIONS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): _Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): _Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): _Transpose.ROTATE_180,
    (0, 1, -1, 0): _Transpose.ROTATE_270,
    (0, -1, 1, 0): _Transpose.ROTATE_90,
    (0, 1, 1, 0): _Transpose.TRANSPOSE,
    (0, -1, -1, 0): _Transpose.TRANSVERSE,
}


def to_image(frame: VideoFrame) -> Image.Image:
    """Return ``frame`` as it is shown, in mode ``RGB``."""
    transposition = _transposition(frame)
    if frame.colorspace not in _MATRICES:
        frame.colorspace = _UNSPECIFIED
    # More threads than one are not allowed where this runs.
    image = Image.fromarray(frame.reformat(format="rgb24", threads=1).to_ndarray())
    return image if transposition is None else image.transpose(transposition)


def _transposition(frame: VideoFrame) -> Image.Transpose | None:
    """Return what makes ``frame`` upright. Angles that are not right ones are ignored."""
    # Not `frame.side_data`, which the frame would keep, and it the frame, until Python looks for
    # cycles: many frames are tens of megabytes.
    container = SideDataContainer(frame)  # type: ignore[call-arg]  # its types lack it
    side_data = container.get("DISPLAYMATRIX")
    if side_data is None or side_data.buffer_size != _DISPLAY_MATRIX.size:
        return None
    across, down, _, back_across, back_down, *_ = _DISPLAY_MATRIX.unpack(bytes(side_data))
    signs = tuple((value > 0) - (value < 0) for value in (across, down, back_across, back_down))
    return _TRANSPOSITIONS.get(signs)
