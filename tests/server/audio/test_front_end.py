"""From sound to a model's input: as transformers prepares it, and every hostile sound's status."""

from __future__ import annotations

import itertools
import re
import tracemalloc

import numpy as np
import pytest

from server.audio.fbank import FLOOR, SAMPLE_RATE
from server.audio.formats import FORMATS, SUPPORTED
from server.errors import BadMedia, RequestError, TooLarge, UnsupportedFormat
from server.media.decoded import SoundInfo, Window
from server.media.limits import AudioLimits
from server.media.transforms import AudioTransform

soundfile = pytest.importorskip("soundfile")

from server.audio.decode import decode  # noqa: E402
from server.audio.front_end import prepare  # noqa: E402
from tests.hostile.build_sounds import encode, noise, wav  # noqa: E402
from tests.hostile.sounds import SLUGS, hostile_sounds, seeds  # noqa: E402

LIMITS = AudioLimits()
AST = AudioTransform(
    frames=1024, mean=-4.2677393, std=4.5689974, time_last=True, subtract_mean=False
)
AUDIO_MAE = AudioTransform(
    frames=1024, mean=-4.2677393, std=4.5689974, time_last=False, subtract_mean=True
)
SPEECH_COMMANDS = AudioTransform(
    frames=128, mean=-6.845978, std=5.5654526, time_last=True, subtract_mean=False
)


def pcm(samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    return encode(samples, sample_rate, "WAV", "FLOAT")


def outcome(body: bytes, transform: AudioTransform = AST) -> int:
    try:
        decoded = prepare(body, transform, LIMITS)
    except RequestError as error:
        return error.status
    assert np.isfinite(decoded.inputs).all()
    return 200


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.24])
@pytest.mark.parametrize("transform", [AST, SPEECH_COMMANDS], ids=["AudioSet", "Speech Commands"])
def test_first_window_equals_transformers(seconds: float, transform: AudioTransform) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchaudio")
    extractor = transformers.ASTFeatureExtractor(
        max_length=transform.frames, mean=transform.mean, std=transform.std
    )
    samples = noise(seconds)
    theirs = extractor(samples[:, 0], sampling_rate=SAMPLE_RATE, return_tensors="np")
    first = prepare(pcm(samples), transform, LIMITS).inputs[0, 0]
    np.testing.assert_allclose(first.T, theirs["input_values"][0], atol=1e-3, rtol=0)


def test_audio_mae_is_transposed() -> None:
    """The mean of a window makes no difference but rounding: that of each frame is subtracted."""
    body = pcm(noise(3) + np.float32(0.2))
    ast = prepare(body, AST, LIMITS)
    audio_mae = prepare(body, AUDIO_MAE, LIMITS)
    assert ast.inputs.shape == (1, *AST.size) == (1, 1, 128, 1024)
    assert audio_mae.inputs.shape == (1, *AUDIO_MAE.size) == (1, 1, 1024, 128)
    np.testing.assert_allclose(audio_mae.inputs[0, 0], ast.inputs[0, 0].T, atol=1e-3, rtol=0)


def test_silence_has_the_published_floor() -> None:
    inputs = prepare(pcm(np.zeros(11 * SAMPLE_RATE)), AST, LIMITS).inputs
    np.testing.assert_allclose(inputs, -1.2776, atol=1e-4)


def test_padding_is_zero_before_normalisation() -> None:
    (model_input,) = prepare(pcm(np.zeros(SAMPLE_RATE)), AST, LIMITS).inputs[:, 0]
    floor = (FLOOR - AST.mean) / (2 * AST.std)
    np.testing.assert_allclose(model_input[:, :98], floor, rtol=1e-6)
    np.testing.assert_allclose(model_input[:, 98:], 0.467, atol=1e-4)


def test_a_long_sound_is_windows_of_one_spectrogram() -> None:
    samples = noise(3)
    frames = SPEECH_COMMANDS.frames
    whole = AudioTransform(298, SPEECH_COMMANDS.mean, SPEECH_COMMANDS.std, True, False)
    expected = prepare(pcm(samples), whole, LIMITS).inputs[0, 0]
    decoded = prepare(pcm(samples), SPEECH_COMMANDS, LIMITS)
    assert len(decoded.inputs) == len(decoded.windows) == 3
    starts = (0, frames, 298 - frames)
    for model_input, start in zip(decoded.inputs[:, 0], starts, strict=True):
        part = expected[:, start : start + frames]
        np.testing.assert_allclose(model_input, part, atol=1e-5)
    assert [window.start for window in decoded.windows] == [start / 100 for start in starts]
    assert decoded.windows[-1].end == pytest.approx(2.995)
    assert decoded.media == SoundInfo(seconds=3.0, sample_rate=SAMPLE_RATE, channels=1)


def test_a_window_ends_with_the_sound() -> None:
    decoded = prepare(pcm(noise(0.5)), AST, LIMITS)
    assert decoded.windows == (Window(0.0, 0.5),)


@pytest.mark.parametrize("name", ["WAV", "FLAC", "VORBIS", "OPUS", "MP3"])
def test_all_codecs_sound_alike(name: str) -> None:
    """A slow sweep, in which a lost, doubled or shifted part would show."""
    rate = 48_000
    seconds = np.arange(2 * rate) / rate
    sweep = 0.3 * np.sin(2 * np.pi * (300 + 400 * seconds) * seconds)
    forms = {"VORBIS": ("OGG", "VORBIS"), "OPUS": ("OGG", "OPUS")}
    form, subtype = forms.get(name, (name, None))
    encoded = encode(np.stack([sweep, sweep], axis=1), rate, form, subtype)
    decoded = prepare(encoded, SPEECH_COMMANDS, LIMITS)
    plain = prepare(pcm(sweep, rate), SPEECH_COMMANDS, LIMITS)
    assert decoded.media == SoundInfo(seconds=2.0, sample_rate=rate, channels=2)
    loudest = decoded.inputs[:, 0, :, 1:-1].argmax(axis=1)
    expected = plain.inputs[:, 0, :, 1:-1].argmax(axis=1)
    assert np.abs(loudest - expected).max() <= 1


@pytest.mark.parametrize("name", sorted(hostile_sounds()))
def test_each_hostile_sound_has_its_status(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    body, status = hostile_sounds()[name]
    before = bytes(body)
    try:
        prepare(body, AST, LIMITS)
    except RequestError as error:
        assert error.status == status
        assert error.slug == SLUGS[status]
        assert not re.search("libsnd|Error|object at", error.detail)
    else:
        assert status == 200
    assert body == before
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_not_supported_says_what_is() -> None:
    for body, status in hostile_sounds().values():
        if status == 415:
            with pytest.raises(UnsupportedFormat, match="allowed"):
                prepare(body, AST, LIMITS)
    assert all(form in SUPPORTED for form in FORMATS)


def test_damaged_sounds_end_in_an_answer() -> None:
    generator = np.random.default_rng(0)
    bodies = list(seeds().values())
    statuses = set()
    for body in itertools.islice(itertools.cycle(bodies), 150):
        damaged = bytearray(body)
        region = generator.choice([100, len(body)])
        for _ in range(generator.integers(1, 8)):
            damaged[generator.integers(region)] = generator.integers(256)
        statuses.add(outcome(bytes(damaged), SPEECH_COMMANDS))
    assert {200, 400} <= statuses <= {200, 400, 413, 415}


@pytest.mark.parametrize("name", ["WAV", "FLAC", "VORBIS", "OPUS", "MP3"])
def test_a_sound_cut_anywhere_is_refused(name: str) -> None:
    body = seeds()[name]
    generator = np.random.default_rng(0)
    for length in generator.integers(12, len(body), 20):
        with pytest.raises(BadMedia):
            prepare(body[:length], AST, LIMITS)


def test_seconds_are_counted() -> None:
    limits = AudioLimits(max_seconds=1)
    assert prepare(pcm(noise(1)), AST, limits).media.seconds == 1
    with pytest.raises(TooLarge, match="longer than 1 s"):
        prepare(pcm(noise(1.001)), AST, limits)


def test_decoded_bytes_are_counted() -> None:
    limits = AudioLimits(max_pcm_bytes=64_000)
    assert prepare(wav(bytes(16_000), bits=8), AST, limits).media.seconds == 1
    with pytest.raises(TooLarge, match=r"more than 0\.064 MB"):
        prepare(wav(bytes(16_001), bits=8), AST, limits)


def test_only_the_mono_sound_stays_in_memory() -> None:
    """8 channels of 8 bits: 4 MB of file, 16 MB when decoded, 2 MB as it is kept."""
    body = wav(bytes(4_000_000), bits=8, channels=8, sample_rate=16_000)
    tracemalloc.start()
    try:
        sound = decode(body, SAMPLE_RATE, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sound.samples.nbytes == 2_000_000
    copy_for_the_decoder = len(body)
    assert peak < copy_for_the_decoder + 3 * sound.samples.nbytes


def test_channels_are_limited() -> None:
    limits = AudioLimits(max_channels=2)
    for form in ("WAV", "FLAC", "OGG"):
        with pytest.raises(TooLarge, match="has 3 channels; allowed are 2"):
            prepare(encode(noise(0.1, channels=3), SAMPLE_RATE, form), AST, limits)


def test_channels_are_averaged() -> None:
    samples = noise(1, channels=6)
    mono = samples.mean(axis=1, keepdims=True)
    several = prepare(pcm(samples), AST, LIMITS).inputs
    np.testing.assert_allclose(several, prepare(pcm(mono), AST, LIMITS).inputs, atol=1e-3)


def test_the_text_of_too_many_windows() -> None:
    with pytest.raises(TooLarge, match=r"12 windows of 1\.28 s"):
        prepare(pcm(noise(16)), SPEECH_COMMANDS, LIMITS)
