import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from server.commands.datasets import (
    FASHION_MNIST_CLASSES,
    check_folder,
    load_fashion_mnist,
    open_dataset,
    read_idx,
    read_source,
)
from server.errors import ConfigError
from server.imaging.decode import decode
from server.media.modality import Modality
from server.media.transforms import ImageTransform
from tests.hostile.build import encode, picture
from tests.pictures.orientations import tags

PLAIN = ImageTransform((1, 2, 3), "nearest", 1.0, "squash")
RGB = ImageTransform((3, 24, 24), "bicubic", 0.9, "center")


def pixels(source: Path | np.ndarray, transform: ImageTransform) -> np.ndarray:
    (row,) = read_source(source, transform).rows
    return row


def idx(array: np.ndarray) -> bytes:
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.astype(np.uint8).tobytes()
    )


@pytest.fixture
def fashion(tmp_path: Path) -> tuple[Path, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(6)))
    return tmp_path, images


def test_idx_files_are_read_gzipped_or_not(fashion: tuple[Path, np.ndarray]) -> None:
    folder, images = fashion
    loaded, labels = load_fashion_mnist("test", folder)
    assert (loaded == images).all()
    assert labels.tolist() == list(range(6))
    data = open_dataset(folder, limit=4)
    assert (len(data), data.classes) == (4, FASHION_MNIST_CLASSES)
    for image, expected in zip(data.sources, images, strict=False):
        assert (np.asarray(image) == expected).all()


def test_each_sub_folder_is_a_class(tmp_path: Path) -> None:
    for name, colour in (("dog", 9), ("cat", 5), ("cat", 6)):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("L", (3, 2), colour).save(tmp_path / name / f"{colour}.png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = open_dataset(tmp_path)
    assert data.classes == ("cat", "dog")
    items = [
        (pixels(source, PLAIN)[0, 0, 0], label)
        for source, label in zip(data.sources, data.labels, strict=True)
    ]
    assert items == [(5, 0), (6, 0), (9, 1)]


def test_a_file_is_decoded_as_the_server_does_it(tmp_path: Path) -> None:
    turned = encode(picture(), "JPEG", exif=tags(6))
    path = tmp_path / "turned.jpg"
    path.write_bytes(turned)
    found = pixels(path, RGB)
    np.testing.assert_array_equal(found, decode(turned, RGB, 10_000, 100))
    assert not np.array_equal(found, decode(encode(picture(), "JPEG"), RGB, 10_000, 100))


def test_an_image_in_memory_may_have_one_channel_for_a_model_of_three() -> None:
    grey = np.full((24, 24), 7, np.uint8)
    assert (pixels(grey, RGB) == 7).all()


def test_an_error_names_the_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    path = tmp_path / "tiff.png"
    path.write_bytes(encode(picture(), "TIFF"))
    with pytest.raises(ConfigError, match=r"tiff\.png cannot be decoded: the body is TIFF"):
        read_source(path, RGB)
    with pytest.raises(ConfigError, match=r"cannot read .*none\.png: No such file"):
        read_source(tmp_path / "none.png", RGB)


@pytest.mark.parametrize(
    "hidden", [".ipynb_checkpoints/x.png", "__MACOSX/x.png", "cat/._x.png", "cat/.x/y.png"]
)
def test_what_tools_leave_behind_is_passed_over(tmp_path: Path, hidden: str) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("L", (3, 2), 5).save(tmp_path / "cat" / "x.png")
    (tmp_path / hidden).parent.mkdir(exist_ok=True)
    (tmp_path / hidden).write_bytes(b"no image")
    data = open_dataset(tmp_path)
    assert data.classes == ("cat",)
    assert data.sources == [tmp_path / "cat" / "x.png"]


def test_a_limit_takes_images_of_all_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("L", (1, 1)).save(tmp_path / name / f"{number}.png")
    assert open_dataset(tmp_path, limit=4).labels == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x0d\x01", b"\0\0\x08\x01\0\0\0\x05abc", b"\0\0\x08"]
)
def test_an_error_names_the_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(ConfigError, match="broken"):
        read_idx(tmp_path / "broken")


def test_of_sounds_and_images_those_that_the_model_takes_are_collected(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name in ("a.wav", "b.MP3", "c.png", "._d.flac"):
        (tmp_path / "cat" / name).write_bytes(b"")
    sounds = open_dataset(tmp_path, modality=Modality.AUDIO)
    assert [source.name for source in sounds.sources] == ["a.wav", "b.MP3"]
    images = open_dataset(tmp_path)
    assert [source.name for source in images.sources] == ["c.png"]


def test_there_are_no_sounds_by_default(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a folder of sounds"):
        open_dataset(None, modality=Modality.AUDIO)
    with pytest.raises(ConfigError, match=r"no sub-folder of sounds; expected .*<class>/<sound>"):
        open_dataset(tmp_path, modality=Modality.AUDIO)


def test_an_error_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        check_folder(tmp_path / "none")
    with pytest.raises(ConfigError, match="has no sub-folder of images"):
        open_dataset(tmp_path)
    with pytest.raises(ConfigError, match="apt install dataset-fashion-mnist"):
        load_fashion_mnist("train", tmp_path)
