"""The parts of the recipe whose mistakes would be silent."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tome_core
from training import data
from training.data import MEAN, STD, augment
from training.masters import MasterAdamW
from training.models import Teacher, refine, vit
from training.train import (
    GPU_STAGES,
    RECIPES,
    STAGES,
    Run,
    Stage,
    learning_rate,
    parse_arguments,
)


def test_masters_step_as_adamw_does_in_float32() -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    theirs = copy.deepcopy(ours)
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    plain = [p for p in theirs.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    optimizer = MasterAdamW(ours, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(16, 6)
        y = torch.randint(0, 3, (16,))
        F.cross_entropy(ours(x), y).backward()
        optimizer.step(lr=1e-2)
        F.cross_entropy(theirs(x), y).backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        expected.step()
        expected.zero_grad()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_masters_keep_steps_that_bfloat16_would_lose() -> None:
    model = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = MasterAdamW(model, weight_decay=0.0)
    for _ in range(20):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step(lr=1e-3)  # a bfloat16 just below 1 is 0.996
    torch.testing.assert_close(optimizer.masters[0], torch.full((16,), 0.98), atol=1e-3, rtol=0)
    assert (model.weight < 0.985).all()


def test_the_resumed_state_goes_on_as_the_whole_run() -> None:
    def steps(model: nn.Module, optimizer: MasterAdamW, seeds: range) -> None:
        for seed in seeds:
            torch.manual_seed(seed)
            model(torch.randn(4, 4, dtype=torch.bfloat16)).square().sum().backward()
            optimizer.step(lr=1e-2)

    torch.manual_seed(0)
    whole = nn.Linear(4, 4).bfloat16()
    first = copy.deepcopy(whole)
    second = nn.Linear(4, 4).bfloat16()
    steps(whole, MasterAdamW(whole, 0.1), range(6))
    optimizer = MasterAdamW(first, 0.1)
    steps(first, optimizer, range(3))
    resumed = MasterAdamW(second, 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    steps(second, resumed, range(3, 6))
    assert torch.equal(whole.weight, second.weight)


def test_augmentation_moves_and_mirrors_whole_images() -> None:
    images = torch.randn(200, 1, 28, 28)
    background = -MEAN / STD
    moved = augment(images, torch.Generator().manual_seed(0), hole=0)
    padded = F.pad(images, (2, 2, 2, 2), value=background)
    for image, original in zip(moved, padded, strict=True):
        windows = [original[:, y : y + 28, x : x + 28] for y in range(5) for x in range(5)]
        assert any(torch.equal(image, w) or torch.equal(image, w.flip(-1)) for w in windows)


def test_refined_weights_fit_the_finer_model() -> None:
    coarse = vit(7)
    fine = vit(2)
    fine.load_state_dict(refine(coarse.state_dict(), 2))
    assert fine.pos_embed.shape == (1, 197, 128)
    assert torch.equal(fine.blocks[3].mlp.fc1.weight, coarse.blocks[3].mlp.fc1.weight)


def test_the_learning_rate_starts_and_ends_where_the_stage_says() -> None:
    stage = Stage("s", 4, epochs=2, lr=(1e-3, 1e-5))
    rates = [learning_rate(stage, i / 100) for i in range(101)]
    assert max(rates) <= 1.03e-3
    assert rates[0] < 1e-4
    assert abs(rates[-1] - 1e-5) < 1e-8


@pytest.mark.parametrize("recipe", RECIPES)
def test_stages_come_after_those_that_they_start_from(recipe: str) -> None:
    names = [stage.name for stage in RECIPES[recipe]]
    for stage in RECIPES[recipe]:
        assert not stage.start or names.index(stage.start) < names.index(stage.name)


def test_a_stage_builds_on_another(tmp_path: Path) -> None:
    run = Run(tmp_path, seed=0)
    torch.save({"model": vit(4).state_dict()}, tmp_path / "medium.pt")
    model = run.build(next(stage for stage in STAGES if stage.name == "merged"))
    assert isinstance(model, tome_core.MergedViT)
    assert model(torch.zeros(2, 1, 28, 28), r=16).shape == (2, 10)


def test_a_timed_stage_ends_within_an_epoch_and_resumes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    images = torch.randn(64, 1, 28, 28)
    labels = torch.randint(10, (64,))

    def load(split: str, device: torch.device) -> tuple[Tensor, Tensor]:
        return images, labels

    monkeypatch.setattr(data, "load", load)
    run = Run(tmp_path, seed=0)
    torch.save({"model": Teacher(2).state_dict()}, run.state_path("teacher"))
    epoch = Stage("s", 7, epochs=1, lr=(1e-3, 1e-5), r=(2,), pairs=True, batch_size=16)
    run.train(epoch)
    state = torch.load(run.state_path("s"))
    assert state["epoch"] == 1
    run.train(epoch)  # it is at its end
    del state["seconds"]  # as a state of before stages had a time
    torch.save(state, run.state_path("s"))
    run.train(replace(epoch, epochs=0, seconds=1e-6))
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["epoch"], first["share"]) == (1, 1.0)
    assert second["epoch"] == 2
    state = torch.load(run.state_path("s"))
    (optimizer_state, *_) = state["optimizer"]["optimizer"]["state"].values()
    assert optimizer_state["step"] == 4 + 1  # four of the first epoch, one until the time is over


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--recipe gpu --stage coarse", "recipe gpu has no stage coarse; it has teacher, settled,"),
        ("--start dense", "--start needs exactly one --stage"),
        ("--start dense --stage merged --stage twin", "--start needs exactly one --stage"),
    ],
)
def test_wrong_command_lines(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(line.split())
    assert message in capsys.readouterr().err


def test_each_recipe_has_its_own_run() -> None:
    args = parse_arguments(["--device", "cuda"])
    assert args.run == Path("training/runs/gpu")
    assert args.stage == [stage.name for stage in GPU_STAGES]
    assert parse_arguments(["--recipe", "cpu"]).run == Path("training/runs/cpu")
