"""`tome-serve models --check`: supported, refused with the reason, or unknown."""

from __future__ import annotations

import pytest

from server.commands.cli import main


@pytest.mark.parametrize(
    ("name", "tokens", "largest_r"),
    [
        ("vit_small_patch16_224", 197, 98),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", 197, 98),
        ("vit_base_patch14_reg4_dinov2", 1374, 684),
        ("eva02_base_patch14_448", 1025, 512),
        ("ast_base_patch16", 1214, 606),
    ],
)
def test_a_supported_model(
    capsys: pytest.CaptureFixture[str], name: str, tokens: int, largest_r: int
) -> None:
    assert main(["models", "--check", name]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{name}: supported (")
    assert f"{tokens} tokens, r from 0 to {largest_r})" in printed


@pytest.mark.parametrize("name", ["swin_base_patch4_window7_224", "resnet50"])
def test_an_unsupported_model_comes_with_its_reason(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main(["models", "--check", name]) == 1
    assert capsys.readouterr().out.startswith(f"{name}: not supported: the model is a ")


def test_a_folder_is_no_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--check", "local-dir:folder"]) == 1
    assert "give one such as vit_base_patch16_224" in capsys.readouterr().err


def test_an_unknown_name_comes_with_similar_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--check", "vit_smal_patch16_224"]) == 1
    message = capsys.readouterr().err
    assert "has no model 'vit_smal_patch16_224'" in message
    assert "did you mean vit_small_patch16_224" in message
