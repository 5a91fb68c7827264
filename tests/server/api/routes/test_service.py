from __future__ import annotations

from dataclasses import replace

from server.api.routes.service import model_description
from server.ipc.messages import Level
from server.media.limits import AudioLimits, MediaLimits, VideoLimits
from server.media.modality import Modality
from tests.server.api.pipeline.fakes import AUDIO_MODEL, MODEL, VIDEO_MODEL

LIMITS: dict[Modality, MediaLimits] = {
    Modality.AUDIO: AudioLimits(),
    Modality.VIDEO: VideoLimits(max_seconds=7.0),
}


def test_a_model_is_described_with_its_levels():
    level = Level("2", tokens_out=3, relative_flops=0.5, speedup=1.5)
    described = model_description(replace(MODEL, levels=(level,)), LIMITS).model_dump()
    assert (described["name"], described["modality"]) == ("tiny", "image")
    assert described["input_size"] == [3, 8, 8]
    assert (described["classes"], described["tokens"], described["blocks"]) == (3, 5, 2)
    assert described["r_max"] == 2
    assert described["levels"] == [
        {
            "r": "2",
            "tokens_out": 3,
            "relative_flops": 0.5,
            "speedup": 1.5,
            "accuracy": None,
            "agreement": None,
            "agreement_low": None,
            "margin": None,
            "margin_agreement": None,
            "cascade_accuracy": None,
            "cosine": None,
            "cosine_low": None,
            "cosine_p1": None,
            "cosine_p5": None,
            "recall_1": None,
            "recall_10": None,
            "mixed_recall_1": None,
            "mixed_recall_10": None,
        }
    ]


def test_a_model_of_sound_is_described_with_the_limits_on_a_sound():
    described = model_description(
        AUDIO_MODEL, {Modality.AUDIO: AudioLimits(max_seconds=1.0)}
    ).model_dump()
    assert (described["modality"], described["input_size"]) == ("audio", [1, 8, 16])
    assert (described["window_seconds"], described["max_windows"]) == (0.16, 12)
    assert (described["max_seconds"], described["max_channels"]) == (1.0, 8)


def test_windows_limit_the_seconds_of_a_sound_too():
    described = model_description(
        AUDIO_MODEL, {Modality.AUDIO: AudioLimits(max_windows=3)}
    ).model_dump()
    assert described["max_seconds"] == 0.48


def test_a_model_of_video_is_described_with_its_clips_and_the_limits_on_a_video():
    described = model_description(VIDEO_MODEL, LIMITS).model_dump()
    assert (described["modality"], described["input_size"]) == ("video", [3, 32, 8])
    assert (described["frames"], described["sampling"], described["stride"]) == (4, "stride", 4)
    assert (described["clips"], described["crops"], described["max_windows"]) == (2, 1, 16)
    assert (described["max_seconds"], described["max_frames"]) == (7.0, 3_600)
    assert described["max_pixels"] == 1920 * 1088
