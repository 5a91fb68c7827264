"""Draw what merging joins across time: `python -m training.motion.picture`.

One held-out clip under several schedules, as `tome-serve visualize` draws it: a region has one
colour in all frames.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from server.catalog.entries import BUNDLED_VIDEO, read_catalog
from server.commands.offline import load_runner, parse_schedule
from server.engine.execution.image_input import ImageInput
from server.engine.execution.runner import Runner
from server.media.transforms import VideoTransform
from server.settings import ModelSettings
from server.video.contact_sheet import draw_clip
from training.motion.clips import PORTION, garments, held_out_portion

OUTPUT = Path("docs/motion.png")
CLIP = 5
LEVELS = ("0", "24", "40")
CAPTION = 30  # pixels, height
FONT_SIZE = 18  # pixels
COLOURS = 128  # of the file


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.motion.picture", description=__doc__)
    parser.add_argument("--clip", type=int, default=CLIP, help=f"number; default: {CLIP}")
    parser.add_argument("--levels", nargs="+", default=LEVELS, metavar="R", help="schedules")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT, help=f"default: {OUTPUT}")
    args = parser.parse_args()
    settings = ModelSettings(dtype="float32", log_level="warning")
    runner = load_runner(settings, read_catalog(BUNDLED_VIDEO, (), profiles=False)[0])
    portion, place = divmod(args.clip, PORTION)
    made = held_out_portion(garments("test"), portion * PORTION, PORTION)
    pixels = made.pixels[place].numpy()
    sheets = [sheet(runner, pixels, level) for level in args.levels]
    stacked(sheets).quantize(COLOURS).save(args.output, optimize=True)
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")


def sheet(runner: Runner, pixels: np.ndarray, level: str) -> Image.Image:
    """Return the contact sheet of a clip ``(3, T*H, W)`` under a schedule, with a caption."""
    model = runner.model
    assert isinstance(model.transform, VideoTransform)
    schedule = parse_schedule(runner, level)
    (answer,) = runner.run([ImageInput(pixels, schedule, output_kind="source", top_k=1)])
    source = np.frombuffer(answer.source, "<i4")
    picture = draw_clip(pixels, source, model.prefix, model.grid, model.transform)
    tokens = runner.tokens(schedule)
    share = model.network.cost().relative(tokens)
    text = f"r={level}: {tokens[-1]} tokens left, {share:.0%} of the operations"
    return captioned(picture, text)


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """Return ``picture`` below a line of text, black on white."""
    result = Image.new("RGB", (picture.width, picture.height + CAPTION), "white")
    result.paste(picture, (0, CAPTION))
    font = ImageFont.load_default(FONT_SIZE)
    ImageDraw.Draw(result).text((4, CAPTION // 2), text, fill="black", font=font, anchor="lm")
    return result


def stacked(pictures: list[Image.Image]) -> Image.Image:
    """Return pictures of one width below each other."""
    height = sum(picture.height for picture in pictures)
    result = Image.new("RGB", (pictures[0].width, height), "white")
    top = 0
    for picture in pictures:
        result.paste(picture, (0, top))
        top += picture.height
    return result


if __name__ == "__main__":
    main()
