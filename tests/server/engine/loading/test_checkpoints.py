import argparse
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from server.engine.loading.checkpoints import find_weights, read_checkpoint, strip_prefixes
from server.errors import ConfigError

STATE = {"a.weight": torch.arange(600.0).reshape(20, 30), "b": torch.ones(3)}


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(
        torch.equal(found[key], value) for key, value in STATE.items()
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w"])
def test_the_content_tells_the_format(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(read_checkpoint(tmp_path / name))
    torch.save(STATE, tmp_path / name)
    assert same(read_checkpoint(tmp_path / name))
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / name))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_in_a_pickle_is_named_and_never_runs(tmp_path: Path, legacy: bool) -> None:
    content = {"model": STATE, "hook": Malicious(tmp_path / "harm")}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    sentence = refusal(tmp_path / "w.pth")
    assert "it holds a Python object (posix.mkdir), which could run code" in sentence
    assert "save model.state_dict() alone, or as safetensors" in sentence
    assert not (tmp_path / "harm").exists()


def test_a_whole_module_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    assert "a Python object (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "w.pth")


def test_the_options_of_a_training_script_do_no_harm(tmp_path: Path) -> None:
    torch.save({"model": STATE, "args": argparse.Namespace(lr=0.1)}, tmp_path / "w.pth")
    assert same(read_checkpoint(tmp_path / "w.pth"))


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_that_was_cut_short(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "w"
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    for kept in (len(content) - 100, len(content) // 2, 80):
        path.write_bytes(content[:kept])
        assert "damaged" in refusal(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"")
    assert refusal(path).endswith("is no safetensors or weights-only torch file: it is empty")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "a Git LFS pointer to the weights; run `git lfs pull`" in refusal(path)
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    assert refusal(path).endswith("it begins with b'<!DOCTYPE html><'")
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    assert "is no torch file" in refusal(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    assert "some other pickle" in refusal(path)
    assert "Is a directory" in refusal(tmp_path)
    assert "No such file" in refusal(tmp_path / "none.pth")


# TorchScript is going away, as torch says, by another category in each version.
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"
)
def test_torchscript(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    assert refusal(tmp_path / "w.pt").endswith(
        "is a TorchScript program; save its state_dict() instead"
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([1, 2], "does not hold a dictionary of tensors; save"),
        ({}, "does not hold a dictionary of tensors; save"),
        ({"model": {}}, "does not hold a dictionary of tensors; save"),
        ({"epoch": 3, **STATE}, "does not hold a dictionary of tensors: 'epoch' is of type int"),
        ({"optimizer": {"lr": 1}}, "'optimizer' is of type dict"),
        ({0: torch.ones(1)}, "0 is of type Tensor"),
    ],
)
def test_content_that_is_not_weights(tmp_path: Path, content: object, sentence: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert sentence in refusal(tmp_path / "w.pth")


def test_only_a_prefix_that_all_keys_share_comes_off() -> None:
    one = torch.ones(1)
    two = torch.ones(2)
    assert strip_prefixes({"module.model.a": one, "module.model.b": two}) == {"a": one, "b": two}
    assert strip_prefixes({"model.a": one, "b": two}) == {"model.a": one, "b": two}


def test_the_weights_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"must hold model\.safetensors or pytorch_model\.bin.*it holds none"
    ):
        find_weights(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "b.pth").touch()
    assert find_weights(tmp_path) == tmp_path / "b.pth"
    (tmp_path / "a.pt").touch()
    with pytest.raises(ConfigError, match=r"it holds a\.pt, b\.pth"):
        find_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert find_weights(tmp_path) == tmp_path / "pytorch_model.bin"
    (tmp_path / "model.safetensors").touch()
    assert find_weights(tmp_path) == tmp_path / "model.safetensors"
