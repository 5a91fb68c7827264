"""Make a small CLIP that knows colours and shapes, and pictures to tag.

python examples/zero-shot/make_clip.py tagging

It trains for some seconds on pictures that it draws, and stands in for a CLIP of the hub, which
takes a download. transformers saves both alike.
"""

from __future__ import annotations

import argparse
import random
import string
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220)}
SHAPES = {"circle": 0, "square": 4, "triangle": 3}  # corners
SIDE = 32
STEPS = 300
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def draw(colour: str, shape: str, chance: random.Random) -> Image.Image:
    """Return a picture of one shape, anywhere on grey."""
    picture = Image.new("RGB", (SIDE, SIDE), (chance.randint(90, 200),) * 3)
    radius = chance.randint(6, 11)
    x, y = (chance.randint(radius, SIDE - radius) for _ in range(2))
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.circle((x, y), radius, fill=COLOURS[colour])
    else:
        pen.regular_polygon((x, y, radius), SHAPES[shape], fill=COLOURS[colour])
    return picture


def to_tensor(picture: Image.Image) -> Tensor:
    """Return what the server makes of a picture, ``(3, SIDE, SIDE)``."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    return (pixels / 255 - MEAN) / STD


def make_tokenizer() -> CLIPTokenizer:
    """Return CLIP's tokenizer with letters alone for a vocabulary."""
    letters = string.ascii_lowercase
    ends = [f"{letter}</w>" for letter in letters]
    tokens = [*letters, *ends, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])


def make_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a CLIP with random weights, two blocks in each tower."""
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2}
    vision = size | heads | {"image_size": SIDE, "patch_size": 4}
    text = size | heads | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))


def train(model: CLIPModel, tokenizer: CLIPTokenizer, chance: random.Random) -> None:
    """Train with CLIP's own loss: each picture belongs to one text of the batch, and to no other.

    The texts of a batch are colours or shapes; what they do not name differs between its pictures.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        colours = chance.sample(list(COLOURS), 3)
        shapes = chance.sample(list(SHAPES), 3)
        words = colours if step % 2 else shapes
        pictures = [draw(*each, chance) for each in zip(colours, shapes, strict=True)]
        texts = tokenizer([f"a picture of {word}" for word in words], padding=True)
        output = model(
            pixel_values=torch.stack([to_tensor(picture) for picture in pictures]),
            **texts.convert_to_tensors("pt"),
            return_loss=True,
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()


def main() -> None:
    """Write the folders ``clip`` and ``pictures``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder

    torch.manual_seed(0)
    chance = random.Random(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, chance)
    model.save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")

    (folder / "pictures").mkdir(exist_ok=True)
    for colour in COLOURS:
        for shape in SHAPES:
            draw(colour, shape, chance).save(folder / "pictures" / f"{colour}-{shape}.png")
    print(f"{folder}: a CLIP and {len(COLOURS) * len(SHAPES)} pictures")


if __name__ == "__main__":
    main()
