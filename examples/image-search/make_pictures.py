"""Make a folder of pictures to search: each picture of examples/, ten times, a little changed.

python examples/image-search/make_pictures.py pictures
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageEnhance

ORIGINALS = Path(__file__).parents[1]
COPIES = 10


def changed(picture: Image.Image, chance: random.Random) -> Image.Image:
    """Return ``picture`` turned, shifted, and lit in another way."""
    shift = (chance.randint(-2, 2), chance.randint(-2, 2))
    turned = picture.rotate(chance.uniform(-15, 15), Image.Resampling.BILINEAR, translate=shift)
    return ImageEnhance.Brightness(turned).enhance(chance.uniform(0.7, 1.3))


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)

    chance = random.Random(0)  # the same pictures every time
    originals = sorted(path for path in ORIGINALS.iterdir() if path.suffix in (".png", ".jpg"))
    for path in originals:
        picture = Image.open(path).convert("L")
        for number in range(COPIES):
            changed(picture, chance).save(folder / f"{path.stem}-{number}.png")
    print(f"{folder}: {len(originals) * COPIES} pictures")


if __name__ == "__main__":
    main()
