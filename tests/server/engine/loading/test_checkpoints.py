"""Checkpoint files: every format loads, code never runs, and an error is one sentence."""

import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.engine.loading.checkpoints import find_weights_file, read_checkpoint
from server.engine.loading.unwrapping import strip_prefixes
from server.errors import ConfigError

STATE_DICT = {
    "a.weight": torch.arange(600.0).reshape(20, 30),
    "b": torch.ones(3),
}
FORMATS = ("zip", "legacy", "safetensors")


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def save(content: object, path: Path, file_format: str = "zip") -> None:
    if file_format == "safetensors":
        assert isinstance(content, dict)
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=file_format == "zip")


def read_error(path: Path) -> str:
    """Return the sentence with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def assert_loads(path: Path) -> None:
    state_dict = read_checkpoint(path)
    assert_same(state_dict, STATE_DICT)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
def test_the_content_decides_the_format(tmp_path: Path, name: str, file_format: str) -> None:
    path = tmp_path / name
    save(STATE_DICT, path, file_format)
    assert_loads(path)


@pytest.mark.parametrize("file_format", ["zip", "legacy"])
def test_code_in_a_pickle_is_named_and_never_runs(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "w.pth"
    harm = tmp_path / "harm"
    save({"model": STATE_DICT, "hook": Malicious(harm)}, path, file_format)
    sentence = read_error(path)
    assert "it holds a Python object (posix.mkdir), which could run code" in sentence
    assert "save model.state_dict() alone, or as safetensors" in sentence
    assert not harm.exists()


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    save(torch.nn.Linear(2, 2), path)
    assert "a Python object (torch.nn.modules.linear.Linear)" in read_error(path)


def test_the_options_of_a_training_script_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    options = argparse.Namespace(lr=0.1)
    save({"model": STATE_DICT, "args": options}, path)
    assert_loads(path)


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_truncated_file_is_damaged(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "w"
    save(STATE_DICT, path, file_format)
    content = path.read_bytes()
    for size in (len(content) - 100, len(content) // 2, 80):
        path.write_bytes(content[:size])
        assert "damaged" in read_error(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Not found</html>", "it begins with b'<!DOCTYPE html><'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "it is a Git LFS pointer to the weights; run `git lfs pull`",
        ),
    ],
    ids=["empty", "html", "git-lfs"],
)
def test_a_file_of_another_format_is_refused(
    tmp_path: Path,
    content: bytes,
    problem: str,
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    sentence = f"{path} is no safetensors or weights-only torch file: {problem}"
    assert read_error(path) == sentence


def test_an_archive_of_numpy_is_no_torch_file(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    np.savez(path, a=np.zeros(3))
    assert "is no torch file but an archive of NumPy (.npz)" in read_error(path)


def test_an_array_of_numpy_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.npy"
    np.save(path, np.zeros(3))
    assert "it is an array of NumPy; convert it to safetensors" in read_error(path)


def test_an_index_names_files_of_its_own_folder_only(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text('{"weight_map": {"a": "../w.safetensors"}}')
    assert "names a file of another folder: ../w.safetensors" in read_error(path)
    path.write_text("[]")
    assert "must hold a JSON object" in read_error(path)
    path.write_text("{}")
    assert "is no index of weights: it has no weight_map" in read_error(path)


def test_a_pickle_that_torch_did_not_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "some other pickle" in read_error(path)


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert "Is a directory" in read_error(tmp_path)
    assert "No such file" in read_error(tmp_path / "none.pth")


# torch deprecates TorchScript, with another warning category in each version.
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning",
    "ignore:.*torch.jit:DeprecationWarning",
)
def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    program.save(str(path))
    assert read_error(path).endswith("is a TorchScript program; save its state_dict() instead")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "does not hold a dictionary of tensors; save"),
        ({}, "does not hold a dictionary of tensors; save"),
        ({"model": {}}, "does not hold a dictionary of tensors; save"),
        (
            {"epoch": 3, **STATE_DICT},
            "does not hold a dictionary of tensors: 'epoch' is of type int",
        ),
        ({"optimizer": {"lr": 1}}, "'optimizer' is of type dict"),
        ({0: torch.ones(1)}, "0 is of type Tensor"),
    ],
)
def test_content_other_than_weights_is_refused(
    tmp_path: Path,
    content: object,
    sentence: str,
) -> None:
    path = tmp_path / "w.pth"
    save(content, path)
    assert sentence in read_error(path)


def test_prefixes_that_all_keys_share_are_stripped() -> None:
    a = torch.ones(1)
    b = torch.ones(2)
    assert strip_prefixes({"module.model.a": a, "module.model.b": b}) == {"a": a, "b": b}


def test_a_prefix_of_some_keys_stays() -> None:
    state_dict = {"model.a": torch.ones(1), "b": torch.ones(2)}
    assert strip_prefixes(state_dict) == state_dict


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    expected = r"must hold model\.safetensors or pytorch_model\.bin.*it holds none"
    with pytest.raises(ConfigError, match=expected):
        find_weights_file(tmp_path)


def test_the_only_weights_file_of_a_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "b.pth").touch()
    assert find_weights_file(tmp_path) == tmp_path / "b.pth"


def test_the_names_of_the_hub_come_before_others(tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    (tmp_path / "b.pth").touch()
    with pytest.raises(ConfigError, match=r"it holds a\.pt, b\.pth"):
        find_weights_file(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weights_file(tmp_path) == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert find_weights_file(tmp_path) == tmp_path / "model.safetensors"
