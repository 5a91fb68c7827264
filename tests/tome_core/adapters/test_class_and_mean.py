"""The classifier on class token and mean of patches: timm's own forward pass, and merged means."""

import torch

import tome_core
from tests.tome_core.models import make_images
from tome_core.adapters.class_and_mean import ClassAndMeanViT

WIDTH = 16
PATCHES = 16
IMAGES = make_images(3, (32, 32))


def make(**arguments: object) -> ClassAndMeanViT:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    vit = ClassAndMeanViT(**{**sizes, "num_classes": 5, **arguments})
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return vit.double().eval()


def test_at_r_0_it_is_the_model_itself() -> None:
    for arguments in ({}, {"reg_tokens": 4, "no_embed_class": True}, {"num_classes": 0}):
        vit = make(**arguments)
        model = tome_core.patch(vit)
        torch.testing.assert_close(model(IMAGES), vit(IMAGES))
        features = vit.forward_head(vit.forward_features(IMAGES), pre_logits=True)
        torch.testing.assert_close(model.embed(IMAGES), features)


def test_the_mean_counts_each_token_by_its_patches() -> None:
    vit = make(reg_tokens=2)
    model = tome_core.patch(vit)
    trace = model.trace(IMAGES, r=3)
    for index, tokens in enumerate(trace.tokens):
        sizes = trace.sizes[index].double()
        total = torch.zeros(WIDTH, dtype=torch.float64)
        for position in range(3, len(tokens)):  # after the class token and two registers
            total += sizes[position] * tokens[position]
        pooled = torch.cat([tokens[0], total / PATCHES])
        torch.testing.assert_close(trace.logits[index], vit.head(pooled))


def test_the_optimised_model_gives_the_same() -> None:
    model = tome_core.patch(make().float())
    images = IMAGES.float()
    for r in (0, 3):
        torch.testing.assert_close(
            tome_core.optimize(model)(images, r), model(images, r), rtol=1e-4, atol=1e-4
        )
