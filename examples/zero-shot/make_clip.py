"""Make a small CLIP that knows colours and patterns of cloth, and pictures to tag.

python examples/zero-shot/make_clip.py tagging

It trains for a second on pictures that it draws, and stands in for a CLIP of the hub, which
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
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 70, 220)}
PATTERNS = ["plain", "stripes", "dots"]
SIDE = 32
STEP = 8  # from one stripe or dot to the next
STEPS = 60
BATCH = 32
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def draw(colour: str, pattern: str, chance: random.Random) -> Image.Image:
    """Return a picture of cloth in one colour, with a pattern in light grey."""
    picture = Image.new("RGB", (SIDE, SIDE), COLOURS[colour])
    light = (chance.randint(200, 255),) * 3
    shift = chance.randint(0, STEP - 1)
    pen = ImageDraw.Draw(picture)
    for y in range(shift - STEP, SIDE, STEP):
        if pattern == "stripes":
            pen.rectangle((0, y, SIDE, y + 2), fill=light)
        elif pattern == "dots":
            for x in range(shift - STEP, SIDE, STEP):
                pen.ellipse((x, y, x + 3, y + 3), fill=light)
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
    vision = size | heads | {"image_size": SIDE, "patch_size": 8}
    text = size | heads | {"vocab_size": len(tokenizer), "max_position_embeddings": 32}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=32))


def train(model: CLIPModel, tokenizer: CLIPTokenizer, chance: random.Random) -> None:
    """Train it to tell, of the texts of all colours and of all patterns, which a picture shows."""
    words = [*COLOURS, *PATTERNS]
    texts = tokenizer([f"a picture of {word}" for word in words], padding=True, return_tensors="pt")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        colours = chance.choices(list(COLOURS), k=BATCH)
        patterns = chance.choices(PATTERNS, k=BATCH)
        pictures = [draw(*each, chance) for each in zip(colours, patterns, strict=True)]
        pixels = torch.stack([to_tensor(picture) for picture in pictures])
        logits = model(pixel_values=pixels, **texts).logits_per_image  # (BATCH, words)

        of_colours, of_patterns = logits.split([len(COLOURS), len(PATTERNS)], dim=1)
        right_colours = torch.tensor([words.index(colour) for colour in colours])
        right_patterns = torch.tensor([words.index(pattern) - len(COLOURS) for pattern in patterns])
        loss = cross_entropy(of_colours, right_colours) + cross_entropy(of_patterns, right_patterns)
        optimizer.zero_grad()
        loss.backward()
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
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(
        folder / "clip"
    )

    (folder / "pictures").mkdir(exist_ok=True)
    for colour in COLOURS:
        for pattern in PATTERNS:
            draw(colour, pattern, chance).save(folder / "pictures" / f"{colour}-{pattern}.png")
    print(f"{folder}: a CLIP and {len(COLOURS) * len(PATTERNS)} pictures")


if __name__ == "__main__":
    main()
