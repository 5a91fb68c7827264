from pathlib import Path

import pytest

from server.catalog.entries import BUNDLED, read_catalog
from server.errors import ConfigError

TABLE = '[[models]]\nname = "a"\ntimm = "vit_tiny_patch16_224"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text)
    return path


def test_the_bundled_model_is_the_default() -> None:
    (spec,) = read_catalog(None, ())
    assert spec.name == "fashion-mnist"
    assert spec.checkpoint is not None
    assert spec.checkpoint.stat().st_size < 12_000_000
    assert BUNDLED.is_file()


def test_only_what_is_named_is_served(tmp_path: Path) -> None:
    assert [spec.name for spec in read_catalog(None, ("vit_a", "hf-hub:org/b"))] == [
        "vit_a",
        "hf-hub-org-b",
    ]
    path = write(tmp_path, TABLE)
    assert [spec.name for spec in read_catalog(path, ("vit_b",))] == ["a", "vit_b"]


def test_files_are_relative_to_the_toml_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    (spec,) = read_catalog(write(tmp_path, TABLE + 'checkpoint = "w.safetensors"\n'), ())
    assert spec.checkpoint == tmp_path / "w.safetensors"


def test_a_folder_is_relative_to_the_toml_file(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (spec,) = read_catalog(
        write(tmp_path, TABLE.replace("vit_tiny_patch16_224", "local-dir:hub")), ()
    )
    assert spec.timm == f"local-dir:{tmp_path / 'hub'}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models = [", "is not valid TOML"),
        ("", r"must hold one or more \[\[models\]\] tables"),
        (
            "[model]\nname = 1\n",
            r"must hold one or more \[\[models\]\] tables and nothing else; it also has model",
        ),
        ('[[models]]\nname = "a"\n', "model 1: timm: Field required"),
        (TABLE + "image_size = 3\n", "image_size: Extra inputs are not permitted"),
        (
            TABLE + 'activation = "relu"\n',
            "activation: Input should be 'softmax', 'sigmoid' or 'none'",
        ),
        (TABLE + "crop_pct = 7\n", "crop_pct: Input should be less than or equal to 1"),
        (
            TABLE + 'crop_mode = "middle"\n',
            "crop_mode: Input should be 'center', 'squash' or 'border'",
        ),
        (
            TABLE.replace("vit_tiny_patch16_224", "local-dir:none"),
            r"model a: timm: there is no .*none/config\.json",
        ),
        (TABLE.replace('"a"', '"a b"'), "name: String should match pattern"),
        (TABLE + 'labels = "none.txt"\n', "model a: labels: there is no file"),
        (TABLE + TABLE, "two models are called 'a'"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_catalog(write(tmp_path, text), ())
    assert "models.toml" in str(caught.value) or "two models" in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_catalog(tmp_path / "no.toml", ())
