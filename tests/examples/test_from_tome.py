import runpy

import pytest
import timm
import torch

import tome_core
from tests.examples.recipes import Recipe
from tests.server.conftest import ROOT
from tome_core import Schedule


def test_readme(tmp_path):
    Recipe("from-tome", tmp_path).test()


@pytest.mark.parametrize(
    ("r", "schedule"),
    [
        (3, Schedule.constant(3)),
        ((2, -1.0), Schedule.linear(2, -1)),
        ([5, 0], Schedule.per_layer([5, 0])),
    ],
)
def test_r_is_kept_between_calls(r, schedule):
    keep_r = runpy.run_path(str(ROOT / "examples" / "from-tome" / "keep_r.py"))
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3).eval()
    images = torch.randn(2, 3, 64, 64)
    model = keep_r["KeepsR"](vit)
    torch.testing.assert_close(model(images), vit(images))
    model.r = r
    for _ in range(2):
        torch.testing.assert_close(model(images), tome_core.patch(vit)(images, r=schedule))
