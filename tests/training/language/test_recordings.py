"""From files to clips: codes, splits, WAV files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from tests.training.language.made_up import clip
from training.language import corpus
from training.language.clips import decode_table, encode, load, save, wav_file
from training.language.corpus import LANGUAGES, SOURCES, Recording, Role, Source, recordings

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

from training.language import prepare  # noqa: E402  (needs soundfile)

PROMPTS = [f"vm-{number}" for number in range(1000)]


def test_codes_are_as_exact_as_the_mu_law() -> None:
    samples = np.linspace(-1, 1, 999, dtype=np.float32)
    decoded = decode_table()[encode(samples)]
    assert np.all(np.abs(decoded - samples) <= 0.022 * np.abs(samples) + 1e-4)


def test_saved_clips_are_loaded(tmp_path: Path) -> None:
    clips = [clip(0, 0.5), clip(3, 0.25, source="b", prompt="digits/1")]
    save(tmp_path / "clips.npz", clips)
    for loaded, saved in zip(load(tmp_path / "clips.npz"), clips, strict=True):
        assert np.array_equal(loaded.codes, saved.codes)
        assert (loaded.label, loaded.source, loaded.prompt) == (
            saved.label,
            saved.source,
            saved.prompt,
        )


def test_no_clips_are_loaded_as_none(tmp_path: Path) -> None:
    save(tmp_path / "none.npz", [])
    assert load(tmp_path / "none.npz") == []


def test_a_wav_file_has_the_samples() -> None:
    one = clip(2, 0.3)
    samples, rate = soundfile.read(io.BytesIO(wav_file(one)), dtype="float32")
    assert rate == 8000
    np.testing.assert_allclose(samples, decode_table()[one.codes], atol=1e-4)


def test_a_prompt_is_held_out_for_all_speakers_or_for_none() -> None:
    trained = [source for source in SOURCES if source.trained]
    roles = {prompt: {_role(source, prompt) for source in trained} for prompt in PROMPTS}
    assert all(len(found) == 1 for found in roles.values())
    held_out = sum(found == {Role.HELD_OUT_CLIP} for found in roles.values())
    assert 0.15 < held_out / len(PROMPTS) < 0.25


def test_a_held_out_speaker_is_never_trained_on() -> None:
    others = [source for source in SOURCES if not source.trained]
    assert {_role(source, prompt) for source in others for prompt in PROMPTS} == {
        Role.HELD_OUT_SPEAKER
    }


def test_every_language_is_trained_on() -> None:
    assert {source.language for source in SOURCES if source.trained} == set(LANGUAGES)


def test_only_speech_is_found(tmp_path: Path) -> None:
    for name in ("beep", "beeper-ready", "digits/1", "silence/1", "phonetic/a_p"):
        path = tmp_path / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    source = Source("someone", "en", tmp_path, ".wav", trained=True)
    assert [found.prompt for found in recordings(source)] == ["beeper-ready", "digits/1"]


def test_silence_around_speech_is_cut_off() -> None:
    second = np.zeros(8000, np.float32)
    samples = np.concatenate([second, second + 0.5, second])
    assert len(prepare.trimmed(samples)) == pytest.approx(8000 + 2 * 0.12 * 8000, abs=2)
    assert len(prepare.trimmed(second)) == 0
    assert len(prepare.trimmed(np.full(100_000, 0.5, np.float32))) == 64_000


def test_recordings_become_arrays_and_wav_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(4000)
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, noise, 16_000)
    source = Source("someone", "it", tmp_path, ".wav", trained=False)
    monkeypatch.setattr(prepare, "SOURCES", (source,))
    data = tmp_path / "data"
    monkeypatch.setattr("sys.argv", ["prepare", "--data", str(data)])
    prepare.main()
    clips = load(data / "speakers.npz")
    assert [(one.label, one.prompt, len(one.codes)) for one in clips] == [
        (3, "a", 2000),
        (3, "b", 2000),
    ]
    assert [path.name for path in sorted((data / "speakers/Italian").iterdir())] == [
        "someone-a.wav",
        "someone-b.wav",
    ]
    assert load(data / "train.npz") == []


def _role(source: Source, prompt: str) -> Role:
    return Recording(source, Path(f"{prompt}{source.suffix}"), prompt).role


def test_labels_are_of_the_languages() -> None:
    assert len(corpus.LABELS) == len(LANGUAGES)
