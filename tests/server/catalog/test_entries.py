from pathlib import Path

import pytest

from server.catalog.entries import BUNDLED, open_catalog, read_catalog
from server.errors import ConfigError

ARCHITECTURE = "vit_tiny_patch16_224"
TABLE = f'[[models]]\nname = "a"\ntimm = "{ARCHITECTURE}"\n'


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


def test_a_timm_name_becomes_a_model_s_name() -> None:
    specs = read_catalog(None, ("vit_a", "hf-hub:org/b"))
    assert [spec.name for spec in specs] == ["vit_a", "hf-hub-org-b"]
    assert [spec.timm for spec in specs] == ["vit_a", "hf-hub:org/b"]


def test_the_tables_come_before_the_timm_names(tmp_path: Path) -> None:
    specs = read_catalog(write(tmp_path, TABLE), ("vit_b",))
    assert [spec.name for spec in specs] == ["a", "vit_b"]


def test_files_are_relative_to_the_toml_file(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    path = write(tmp_path, TABLE + 'checkpoint = "w.safetensors"\n')
    (spec,) = read_catalog(path, ())
    assert spec.checkpoint == tmp_path / "w.safetensors"


def test_a_folder_is_relative_to_the_toml_file(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    path = write(tmp_path, TABLE.replace(ARCHITECTURE, "local-dir:hub"))
    (spec,) = read_catalog(path, ())
    assert spec.timm == f"local-dir:{folder}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("models = [", "is not valid TOML"),
        ("", r"must hold one or more \[\[models\]\] tables"),
        (
            "[model]\nname = 1\n",
            r"must hold one or more \[\[models\]\] tables.*and nothing else; it also has model",
        ),
        ('[[models]]\nname = "a"\n', "model 1: timm: Field required"),
        (TABLE + "image_size = 3\n", "image_size: Extra inputs are not permitted"),
        (
            TABLE + 'activation = "relu"\n',
            "activation: Input should be 'softmax', 'sigmoid', 'none' or 'cosine'",
        ),
        (TABLE + "std = [0.5, 0, 0.5]\n", r"std\.1: Input should be greater than 0"),
        (TABLE + "mean = [nan]\n", r"mean\.0: Input should be a finite number"),
        (TABLE + "std = [inf]\n", r"std\.0: Input should be a finite number"),
        (TABLE + 'interpolation = "best"\n', "interpolation: Input should be 'bicubic', 'bil"),
        (TABLE + "crop_pct = 7\n", "crop_pct: Input should be less than or equal to 1"),
        (
            TABLE + 'crop_mode = "middle"\n',
            "crop_mode: Input should be 'center', 'squash' or 'border'",
        ),
        (
            TABLE.replace(ARCHITECTURE, "local-dir:none"),
            r"model a: timm: there is no .*none/config\.json",
        ),
        (TABLE.replace('"a"', '"a b"'), "name: String should match pattern"),
        (TABLE + 'labels = "none.txt"\n', "model a: labels: there is no file"),
    ],
)
def test_a_mistake_is_named_with_its_file(
    tmp_path: Path,
    text: str,
    sentence: str,
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_catalog(path, ())
    assert str(path) in str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    path.write_text(TABLE, "utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert [spec.name for spec in read_catalog(path, ())] == ["a"]


def test_a_profile_that_is_yet_to_be_written_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE + 'profile = "a.json"\n')
    with pytest.raises(ConfigError, match=r"model a: profile: there is no file .*a\.json"):
        read_catalog(path, ())
    (spec,) = read_catalog(path, (), profiles=False)
    assert spec.profile is None


def test_a_folder_in_place_of_a_file_is_answered_with_how_to_name_folders(tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    path = write(tmp_path, TABLE + 'checkpoint = "vit"\n')
    with pytest.raises(
        ConfigError, match='vit is a folder; name a file, or set timm = "local-dir:'
    ):
        read_catalog(path, ())


def test_two_models_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE + TABLE)
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        read_catalog(path, ())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no\.toml: No such file"):
        read_catalog(tmp_path / "no.toml", ())


def test_a_label_set_is_a_file_or_a_table_of_them(tmp_path: Path) -> None:
    (tmp_path / "b.safetensors").write_bytes(b"")
    file = tmp_path / "b.safetensors"
    (spec,) = read_catalog(write(tmp_path, TABLE + 'text = "b.safetensors"\n'), ())
    assert spec.label_files == {"default": file}
    text = 'text = { birds = "b.safetensors", a = "b.safetensors" }\n'
    (spec,) = read_catalog(write(tmp_path, TABLE + text), ())
    assert list(spec.label_files.items()) == [("birds", file), ("a", file)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('"none.safetensors"', r"model a: text: there is no file .*none\.safetensors"),
        ('{ b = "none.safetensors" }', r"model a: text: there is no file .*none\.safetensors"),
        ("{}", "model a: text: the table names no file"),
        ('{ "b c" = "a" }', "String should match pattern"),
        ("3", "model 1: text: Value error, it must be a file, or a table of several by name"),
    ],
)
def test_mistakes_in_label_sets(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, TABLE + f"text = {text}\n")
    with pytest.raises(ConfigError, match=sentence):
        read_catalog(path, ())


def test_aliases_are_further_names_of_models(tmp_path: Path) -> None:
    catalog = open_catalog(write(tmp_path, TABLE + '[aliases]\nflowers = "a"\n'), ("vit_b",))
    assert catalog.aliases == {"flowers": "a"}
    assert catalog.find("flowers") is catalog.find("a") is catalog.specs[0]
    with pytest.raises(ConfigError, match="no model 'c'; there are a, vit_b, flowers"):
        catalog.find("c")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ('aliases = "a"\n' + TABLE, "aliases must be a table"),
        (TABLE + "[aliases]\nflowers = 1\n", "flowers must be the name of a model"),
        (TABLE + '[aliases]\n"a b" = "a"\n', "'a b' may only have letters"),
        (TABLE + '[aliases]\na = "a"\n', "'a' is a model as well"),
        (TABLE + '[aliases]\nflowers = "b"\n', "'b', which is no model; there are a"),
    ],
)
def test_a_mistake_in_the_aliases_is_named(tmp_path: Path, table: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        open_catalog(write(tmp_path, table), ())
