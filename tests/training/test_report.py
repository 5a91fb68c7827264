"""The report of the bundled model says what its profiles say, and refuses those of other models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.catalog.entries import read_catalog
from server.catalog.profiles import ProfileRow, weights_digest, write_profile
from tome_core.rules import RULE_NAMES
from training.profiled import CPU_TWIN, DENSE, PAPER, Source, read_rules
from training.report import PLOT, ROOT, documents, main

pytest.importorskip("matplotlib")

SCHEDULES = {
    "0": 1.0,
    "8": 1.3,
    "13": 1.6,
    "16": 1.9,
    "20": 2.2,
    "25": 2.7,
    "17": 2.0,
    "15:-0.5": 2.0,
    "16:-1": 2.7,
}
MARKERS = {"README.md": ["bundled"], "training/README.md": ["twins", "rules", "dense-rules"]}
SOURCES = (PAPER, DENSE, CPU_TWIN)


def _rows(accuracy: float, loss: float) -> list[ProfileRow]:
    """Rows that lose ``loss`` points more with each schedule."""
    rows = []
    for index, (r, speedup) in enumerate(SCHEDULES.items()):
        row = ProfileRow(
            r,
            accuracy=accuracy - index * loss,
            tokens=197 - index,
            relative_flops=1 / speedup,
            images_per_s=100 * speedup,
            speedup=speedup,
            accuracy_low=accuracy - 1,
            accuracy_high=accuracy + 1,
            agreement=100.0 - index,
        )
        if index:
            row = replace(
                row,
                margin=0.7,
                margin_agreement=99.9,
                second_passes=10.0,
                cascade_accuracy=accuracy - 0.01 * index,
            )
        rows.append(row)
    return rows


def _conditions(root: Path, source: Source) -> dict[str, Any]:
    (spec,) = read_catalog(root / source.config, (), profiles=False)
    assert spec.checkpoint is not None
    return {
        "model": spec.name,
        "weights": weights_digest(spec.checkpoint),
        "data": "pictures",
        "images": 4000,
        "batch": 50,
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What the report reads of the repository, with measurements that were made up."""
    for folder in ("docs", "server/bundled", "training/weights"):
        (tmp_path / folder).mkdir(parents=True)
    labels = "server/bundled/fashion-mnist.labels.txt"
    shutil.copy(ROOT / labels, tmp_path / labels)
    for number, source in enumerate(SOURCES):
        shutil.copy(ROOT / source.config, tmp_path / source.config)
        (spec,) = read_catalog(ROOT / source.config, (), profiles=False)
        assert spec.checkpoint is not None
        (tmp_path / spec.checkpoint.relative_to(ROOT)).write_text(spec.checkpoint.name)
        rows = []
        for place, rule in enumerate(RULE_NAMES):
            of_rule = _rows(93.0 - number, 0.1 + 0.1 * number + 0.01 * place)
            rows += [replace(row, merging=rule, prop_attn=True) for row in of_rule]
        conditions = _conditions(tmp_path, source)
        write_profile(tmp_path / source.profile, rows, conditions)
    for document, names in MARKERS.items():
        parts = [f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names]
        (tmp_path / document).write_text("before\n" + "between\n".join(parts) + "after\n")
    return tmp_path


def test_documents_have_the_numbers_of_the_profiles(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], root) == 0
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n<!-- bundled -->\n| `r` |")
    assert readme.endswith("|\n<!-- /bundled -->\nafter\n")
    assert "| 16 | 92.70 | 194 of 197 | 190 | 1.90x |" in readme
    training = (root / "training" / "README.md").read_text()
    assert "old" not in training
    assert "4,000 images of pictures in batches of 50" in training
    assert "cpu, float32, 2 threads" in training
    # The bundled model, dense, and the twin of the recipe for CPUs.
    twins = "| 13 | 195 | 62% | 92.80 | 0.20 | 1.60x | 91.60 | 0.40 | 1.60x | 90.40 | 0.60 |"
    assert twins in training
    # 1 / (1 / 1.6 + 0.1) of the second passes.
    rules = "| 13 | 92.80 | 98.00 | 1.60x | 92.78 | 98.00 | 1.60x | 92.76 | 98.00 | 1.60x |"
    assert f"{rules} 10.00 | 99.90 | 92.98 | 1.38x |" in training
    assert "| 13 | 91.60 | 98.00 | 1.60x | 91.58 |" in training
    assert (root / PLOT).stat().st_size > 10_000
    assert "written: docs/fashion-mnist.png, training/README.md, README.md" in (
        capsys.readouterr().out
    )
    assert main([], root) == 0
    assert (root / "README.md").read_text() == readme


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.profile)
def test_a_profile_that_is_missing(
    root: Path, source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / source.profile).unlink()
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert f"error: there is no {source.profile}; measure it: tome-serve evaluate" in error
    assert "old" in (root / "README.md").read_text()
    assert not (root / PLOT).exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "0123"}, "is of the weights 0123, but dense.safetensors has "),
        ({"weights": None}, "does not say which weights it is of; measure it: "),
        ({"dtype": "bfloat16"}, "has dtype float32, but training/dense.profile.json has bfloat16"),
        ({"images": 100}, "has images 4000, but training/dense.profile.json has 100"),
    ],
)
def test_a_profile_of_something_else(
    root: Path, changed: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conditions = _conditions(root, DENSE) | changed
    write_profile(root / DENSE.profile, _rows(92.0, 0.1), conditions)
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert message in error
    command = "tome-serve evaluate --config training/dense.toml --merging"
    assert f'{command} "paper pairs nearest" --profile training/dense.profile.json' in error
    assert "old" in (root / "training" / "README.md").read_text()


def test_a_profile_of_one_rule_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [replace(row, merging="paper", prop_attn=True) for row in _rows(93.0, 0.1)]
    write_profile(root / PAPER.profile, rows, _conditions(root, PAPER))
    assert main([], root) == 1
    assert 'merges under merging = "pairs"' in " ".join(capsys.readouterr().err.split())


def test_a_profile_without_a_schedule(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(root / DENSE.profile, _rows(92.0, 0.1)[:-1], _conditions(root, DENSE))
    assert main([], root) == 1
    assert "training/dense.profile.json has no r=16:-1; measure it" in capsys.readouterr().err


def test_a_document_without_markers(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "README.md").write_text("nothing\n")
    assert main([], root) == 1
    assert "README.md: a document needs one line <!-- bundled -->" in capsys.readouterr().err
    assert "old" in (root / "training" / "README.md").read_text()


def test_the_twin_of_the_cpu_recipe_is_compared_by_its_losses_alone(root: Path) -> None:
    conditions = _conditions(root, CPU_TWIN) | {"dtype": "bfloat16"}
    write_profile(root / CPU_TWIN.profile, _rows(90.0, 0.3), conditions)
    assert main([], root) == 0
    assert "`twin` was measured in bfloat16." in (root / "training" / "README.md").read_text()


def test_the_documents_of_the_repository_are_those_of_its_profiles() -> None:
    for name, text in documents(ROOT, read_rules(ROOT, PAPER)).items():
        hint = "run `python -m training.report`"
        assert (ROOT / name).read_text("utf-8") == text, hint


def test_profiles_are_json_of_one_object(root: Path) -> None:
    (root / DENSE.profile).write_text(json.dumps([1]))
    assert main([], root) == 1
