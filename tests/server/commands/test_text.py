"""``tome-serve text``: what it writes, and its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from server.commands.cli import main
from server.engine.loading.label_vectors import read_label_vectors
from tests.server.tiny_pairs import BIRDS, TEMPLATES, make_pair, save_pair, tokens_of

pytestmark = pytest.mark.usefixtures("restored_logging")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for kind in ("clip", "siglip"):
        save_pair(make_pair(kind), folder / kind)
    (folder / "birds.txt").write_text("\n".join(BIRDS) + "\n")
    (folder / "templates.txt").write_text("\n\n".join(TEMPLATES) + "\n")
    return folder


def run(folder: Path, model: str, *more: str, labels: str = "birds.txt") -> tuple[int, Path]:
    output = folder / f"{model}.safetensors"
    arguments = ["text", str(folder / model), str(folder / labels), "-o", str(output)]
    return main([*arguments, "--device", "cpu", "--log-level", "error", *more]), output


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_a_label_has_the_mean_of_its_templates(
    folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = run(folder, kind, "--templates", str(folder / "templates.txt"), "--batch", "4")
    assert code == 0
    assert "6 labels, vectors of" in capsys.readouterr().out
    model = make_pair(kind)
    found = read_label_vectors(output)
    assert found.labels == BIRDS
    assert found.scale == pytest.approx(float(model.logit_scale.exp()))
    assert found.bias == (None if kind == "clip" else pytest.approx(-1.5))
    for label, vector in zip(BIRDS, found.vectors, strict=True):
        texts = [template.replace("{}", label) for template in TEMPLATES]
        embedded = model.get_text_features(**tokens_of(model, texts)).pooler_output
        mean = functional.normalize(embedded, dim=-1).mean(dim=0)
        torch.testing.assert_close(vector, mean / mean.norm(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("a\n\nb\n", "line 2: it is empty; write one label a line"),
        ("a\nb\na\n", "line 3: 'a' stands in line 1 too"),
        ("", "line 1: it is empty"),
    ],
)
def test_mistakes_in_the_labels(
    folder: Path, labels: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "wrong.txt").write_text(labels)
    assert run(folder, "none", labels="wrong.txt")[0] == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("templates", "sentence"),
    [("\n", "has no template"), ("a photo of {}\na photo\n", "'a photo' has no {}")],
)
def test_mistakes_in_the_templates(
    folder: Path, templates: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "wrong-templates.txt"
    path.write_text(templates)
    assert run(folder, "none", "--templates", str(path))[0] == 1
    assert sentence in capsys.readouterr().err


def test_folders_without_a_text_tower(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "empty").mkdir()
    make_pair("clip").vision_model.save_pretrained(folder / "vision")
    sentences = {
        "nothing": "there is no folder",
        "empty": "is no folder of transformers (config.json with model_type) or open_clip",
        "vision": "is a model of type 'clip_vision_model'; supported are clip and siglip",
    }
    for name, sentence in sentences.items():
        code, output = run(folder, name)
        assert code == 1
        assert sentence in capsys.readouterr().err
        assert not output.exists()


def test_the_output_is_checked_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["text", "none", str(folder / "birds.txt"), "--log-level", "error"]
    assert main(arguments) == 1
    assert "name the file to write: -o labels.safetensors" in capsys.readouterr().err
    assert main([*arguments, "-o", str(folder / "none" / "a.safetensors")]) == 1
    assert "there is no folder" in capsys.readouterr().err
