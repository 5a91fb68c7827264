"""What is made of a trained model: its evaluation, clips as files, and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from server.catalog.entries import BUNDLED_VIDEO, read_catalog
from server.commands.offline import load_runner
from server.engine.execution.runner import Runner
from server.media.decoded import VideoInfo
from server.media.limits import VideoLimits
from server.media.transforms import VideoTransform
from server.settings import ModelSettings
from training.motion import evaluate as evaluation
from training.motion.clips import Clips, clips
from training.motion.evaluate import (
    TWIN,
    Answers,
    accuracy_cells,
    evaluate,
    resume,
    speed_up,
    table,
)
from training.motion.network import FRAMES, MEAN, PATCH, SIZE, STD, TUBELET, build
from training.motion.picture import captioned, stacked

LEVELS = ("0", "44:-1")


@pytest.fixture(scope="module")
def runner() -> Runner:
    spec = read_catalog(BUNDLED_VIDEO, (), profiles=False)[0]
    return load_runner(ModelSettings(threads=1, dtype="float32"), spec)


@pytest.fixture
def made() -> Clips:
    garments = torch.zeros(2, 28, 28)
    garments[:, 8:20, 4:24] = 1.0
    labels = torch.tensor([0, 4, 8])
    return clips(garments, labels, torch.Generator().manual_seed(0), difficulty=0.0)


def test_the_twin_differs_in_its_weights_alone() -> None:
    (bundled,) = read_catalog(BUNDLED_VIDEO, (), profiles=False)
    (twin,) = read_catalog(TWIN, (), profiles=False)
    own = {"name", "checkpoint", "labels"}
    assert twin.model_dump(exclude=own) == bundled.model_dump(exclude=own)
    assert twin.labels is not None
    assert bundled.labels is not None
    assert twin.labels.resolve() == bundled.labels.resolve()


def test_the_entry_says_what_the_network_was_trained_on() -> None:
    (spec,) = read_catalog(BUNDLED_VIDEO, (), profiles=False)
    network = build()
    assert spec.img_size == SIZE
    assert (spec.mean, spec.std) == ((MEAN,) * 3, (STD,) * 3)
    assert spec.model_args == {
        "frames": FRAMES,
        "tubelet": TUBELET,
        "patch_size": PATCH,
        "embed_dim": network.embed_dim,
        "depth": len(network.blocks),
        "num_heads": network.blocks[0].attn.num_heads,
    }


def test_an_interrupted_evaluation_goes_on_after_the_last_whole_batch(
    runner: Runner, made: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def batches(start: int, count: int) -> list[Clips]:
        starts.append(start)
        batch = [Clips(*(part[n : n + 1] for part in vars(made).values())) for n in range(count)]
        return batch[start:]

    monkeypatch.setattr(evaluation, "BATCH", 1)
    monkeypatch.setattr(evaluation, "batches_from", batches)
    results = tmp_path / "evaluation.jsonl"
    whole = evaluate([runner], LEVELS, 3, results)
    lines = results.read_text().splitlines(keepends=True)
    results.write_text("".join(lines[:3]) + lines[3][:10])
    again = evaluate([runner], LEVELS, 3, results)
    assert starts == [0, 2]
    assert again[:2] == whole[:2]
    assert [_classes(batch) for batch in again] == [_classes(batch) for batch in whole]
    assert results.read_text().count("\n") == 4
    with pytest.raises(SystemExit, match="another evaluation"):
        evaluate([runner], ("0",), 3, results)
    rows = table([runner], LEVELS, whole).splitlines()
    assert len(rows) == 4
    assert rows[2].startswith("| 0 | 512 | 100% |")
    assert rows[3].startswith("| 44:-1 | 4 | 28% |")


def _classes(batch: dict[str, dict[str, dict[str, dict[str, list[int]]]]]) -> list[list[int]]:
    return [batch["answers"]["motion"][level]["classes"] for level in LEVELS]


def test_a_file_of_results_that_was_interrupted_at_its_start_begins_again(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "results.jsonl"
    assert resume(results, {"levels": ["0"]}) == []
    assert json.loads(results.read_text()) == {"levels": ["0"]}
    assert resume(results, {"levels": ["0"]}) == []
    results.write_text(results.read_text()[:5])
    assert resume(results, {"levels": ["0"]}) == []
    assert json.loads(results.read_text()) == {"levels": ["0"]}


def test_changed_counts_classes_and_not_errors() -> None:
    labels = torch.tensor([0, 1, 2, 3])
    plain = torch.tensor([0, 1, 0, 0])
    merged = torch.tensor([0, 2, 1, 0])
    accuracy, loss, changed = accuracy_cells(plain, merged, labels)
    assert accuracy.startswith("25.0 (")
    assert loss.startswith("25.0 ±")
    assert changed == "50.0"


def test_the_speed_up_is_the_median_over_batches() -> None:
    classes = torch.zeros(3)
    assert speed_up(Answers(classes, [2.0, 4.0, 9.0]), Answers(classes, [1.0, 2.0, 1.0])) == 2.0


def test_an_exported_clip_is_decoded_as_it_was(made: Clips) -> None:
    pytest.importorskip("av")
    from server.video.front_end import prepare
    from training.motion.export_clips import FRAME_RATE, frames_of, video_file

    transform = VideoTransform(
        frames=FRAMES, tubelet=2, height=SIZE, width=SIZE, resize=SIZE, stride=1
    )
    for size in (SIZE, 4 * SIZE):
        encoded = video_file(frames_of(made.pixels[0], size))
        decoded = prepare(encoded, transform, VideoLimits())
        assert isinstance(decoded.media, VideoInfo)
        assert decoded.media.frames == FRAMES
        assert decoded.media.frame_rate == pytest.approx(FRAME_RATE)
        errors = torch.from_numpy(decoded.inputs[0]).float() - made.pixels[0].float()
        assert errors.abs().mean() < 6


def test_pictures_are_captioned_and_stacked() -> None:
    from PIL import Image

    picture = Image.new("RGB", (200, 50))
    one = captioned(picture, "r=0: 512 tokens left")
    assert one.height > 50
    assert stacked([one, one]).size == (200, 2 * one.height)
