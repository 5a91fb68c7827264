"""Write held-out clips as files: `python -m training.motion.export_clips`.

They are MP4 with H.264 in a folder for each class, as `tome-serve evaluate FOLDER` takes
them.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import av
import numpy as np
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor

from training.motion.clips import PORTION, garments, held_out
from training.motion.motions import NAMES
from training.motion.network import FRAMES, SIZE

FOLDER = Path("training/runs/motion-clips")
COUNT = 600
FRAME_RATE = 15
QUALITY = "23"  # constant rate factor of x264


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.motion.export_clips", description=__doc__
    )
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help=f"default: {FOLDER}")
    parser.add_argument("--clips", type=int, default=COUNT, help=f"default: {COUNT}")
    parser.add_argument(
        "--size", type=int, default=SIZE, help=f"height and width in pixels; default: {SIZE}"
    )
    args = parser.parse_args()
    if args.size < 2 or args.size % 2:
        parser.error("--size must be even: H.264 stores colours at half of the resolution")
    for name in NAMES:
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    portions = held_out(garments("test"), args.clips)
    total = -(-args.clips // PORTION)
    for portion, made in enumerate(track(portions, "clips", total)):
        for place, (pixels, label) in enumerate(
            zip(made.pixels, made.labels.tolist(), strict=True)
        ):
            number = portion * PORTION + place
            path = args.folder / NAMES[label] / f"{number:05}.mp4"
            path.write_bytes(video_file(frames_of(pixels, args.size)))


def frames_of(pixels: Tensor, size: int) -> np.ndarray:
    """Return the frames ``uint8 (T, size, size, 3)`` of a clip ``uint8 (3, T*H, W)``."""
    frames = pixels.unflatten(1, (FRAMES, SIZE)).transpose(0, 1)  # (T, 3, H, W)
    if size != SIZE:
        larger = F.interpolate(frames.float(), size, mode="bicubic", align_corners=False)
        frames = larger.round().clamp(0, 255).byte()
    return frames.permute(0, 2, 3, 1).contiguous().numpy()


def video_file(frames: np.ndarray) -> bytes:
    """Return an MP4 file of ``frames uint8 (T, H, W, 3)``, whose height and width are even."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FRAME_RATE, options={"crf": QUALITY})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return file.getvalue()


if __name__ == "__main__":
    main()
