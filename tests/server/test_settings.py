"""Settings come from flags, environment and defaults, and are checked."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server import settings as module
from server.hardware import machine_defaults, runs_on_gpu
from server.media.limits import VideoLimits
from server.media.modality import Modality
from server.settings import Settings, share


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TOME_{name.upper()}", raising=False)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr(module, "usable_cores", lambda: 20)


def test_flags_come_before_environment_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_PORT", "9001")
    monkeypatch.setenv("TOME_MAX_BATCH", "3")
    settings = Settings(port="9002")
    assert (settings.port, settings.max_batch, settings.queue_limit) == (9002, 3, 256)


def sizes(settings: Settings) -> tuple[int, int, int]:
    return settings.max_batch, settings.queue_limit, settings.decode_threads


def test_defaults_on_a_cpu_and_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sizes(Settings()) == (32, 256, 2)
    assert sizes(Settings(device="cuda:0,cuda:1")) == (128, 1024, 3)
    monkeypatch.setenv("TOME_DEVICE", "cuda")
    assert sizes(Settings()) == (128, 1024, 3)
    monkeypatch.delenv("TOME_DEVICE")
    monkeypatch.setattr(module, "has_gpu", lambda: True)
    assert sizes(Settings()) == (128, 1024, 3)
    assert sizes(Settings(device="cpu")) == (32, 256, 2)


def test_settings_override_the_defaults_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_DEVICE", "cuda")
    monkeypatch.setenv("TOME_QUEUE_LIMIT", "256")
    monkeypatch.setenv("TOME_MAX_BATCH", "")  # counts as not set
    assert sizes(Settings(decode_threads="3")) == (128, 256, 3)
    assert sizes(Settings(max_batch=32)) == (32, 256, 3)


@pytest.mark.parametrize(
    ("device", "gpu_here", "expected"),
    [
        ("cpu", True, False),
        ("cpu,cpu", True, False),
        ("auto", True, True),
        ("auto", False, False),
        ("cuda", False, True),
        ("cuda:1, cuda:2", False, True),
        ("cpu,cuda:0", False, True),
    ],
)
def test_a_device_setting_is_a_gpu_or_not(device: str, gpu_here: bool, expected: bool) -> None:
    assert runs_on_gpu(device, gpu_here) == expected


@pytest.mark.parametrize(("cores", "threads"), [(1, 2), (6, 2), (7, 3), (12, 2), (32, 3), (200, 8)])
def test_some_cores_stay_free_for_the_processes(cores: int, threads: int) -> None:
    assert machine_defaults(cores, gpu=True)["decode_threads"] == threads


@pytest.mark.parametrize(
    ("cores", "gpu", "workers"),
    [(2, False, 1), (16, False, 1), (64, False, 4), (2, True, 1), (16, True, 4), (200, True, 8)],
)
def test_api_processes_follow_from_the_cores(cores: int, gpu: bool, workers: int) -> None:
    assert machine_defaults(cores, gpu)["api_workers"] == workers


@pytest.mark.parametrize("name", ["queue_limit", "decode_workers"])
def test_every_api_process_has_a_part_of_what_they_share(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOME_API_WORKERS", "3")
    assert Settings().decode_workers == 3
    monkeypatch.setenv(f"TOME_{name.upper()}", "2")
    with pytest.raises(ValueError, match=f"{name} must not be smaller than api_workers, 3 here"):
        Settings()


@given(st.integers(1, 200), st.integers(1, 64))
def test_shares_add_up(total: int, workers: int) -> None:
    shares = [share(total, worker, workers) for worker in range(workers)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_MODELS", "vit_a, vit_b")
    monkeypatch.setenv("TOME_LEVELS", "16,4")
    settings = Settings()
    assert settings.models == ("vit_a", "vit_b")
    assert Settings(default_r="auto").default_r == "auto"
    assert settings.levels == (0, 4, 16)  # r=0 is the baseline of speed-ups
    assert Settings(levels="8").levels == (0, 8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "x"),
        ("PORT", "70000"),
        ("LEVELS", "a"),
        ("LEVELS", "-1"),
        ("DEFAULT_R", "fast"),
        ("MAX_BATCH", "0"),
    ],
)
def test_an_invalid_value_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"TOME_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_every_setting_is_described_in_one_line() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
        assert "\n" not in field.description, name
        assert len(field.description) < 120, name


def test_proxies_and_origins_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOME_ROOT_PATH", "/vision/v1/")
    monkeypatch.setenv("TOME_FORWARDED_ALLOW_IPS", "10.0.0.0/8, 2001:db8::1")
    monkeypatch.setenv(
        "TOME_CORS_ORIGINS", "https://app.example, http://localhost:3000,http://[::1]:8080"
    )
    settings = Settings()
    assert settings.root_path == "/vision/v1"
    assert settings.forwarded_allow_ips == ("10.0.0.0/8", "2001:db8::1")
    assert settings.cors_origins == (
        "https://app.example",
        "http://localhost:3000",
        "http://[::1]:8080",
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ROOT_PATH", "vision", "such as /vision"),
        ("ROOT_PATH", "/a//b", "such as /vision"),
        ("ROOT_PATH", "/a?b", "such as /vision"),
        ("FORWARDED_ALLOW_IPS", "proxy", "'proxy' does not appear to be an IPv4 or IPv6 network"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8", "has host bits set"),
        ("CORS_ORIGINS", "app.example", "'app.example' is not an origin"),
        ("CORS_ORIGINS", "https://app.example/page", "is not an origin"),
    ],
)
def test_an_invalid_proxy_or_origin_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(f"TOME_{name}", value)
    with pytest.raises(ValidationError, match=message):
        Settings()


def test_bodies_of_sounds_are_no_larger_than_all_bodies_together():
    settings = Settings(max_inflight_bytes=25_000_000)
    assert (settings.max_audio_bytes, settings.audio_body_bytes) == (32_000_000, 25_000_000)
    assert Settings().audio_body_bytes == 32_000_000
    with pytest.raises(ValidationError, match="must not be smaller than max_audio_bytes"):
        Settings(max_inflight_bytes=25_000_000, max_audio_bytes=26_000_000)


def test_bodies_of_videos_are_no_larger_than_all_bodies_together():
    settings = Settings(max_inflight_bytes=25_000_000)
    assert (settings.max_video_bytes, settings.video_body_bytes) == (64_000_000, 25_000_000)
    assert Settings().video_body_bytes == 64_000_000
    with pytest.raises(ValidationError, match="must not be smaller than max_video_bytes"):
        Settings(max_inflight_bytes=25_000_000, max_video_bytes=26_000_000)


def test_limits_on_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().video_limits == VideoLimits()
    monkeypatch.setenv("TOME_MAX_VIDEO_FRAMES", "7")
    settings = Settings(max_video_seconds=60, max_video_pixels=5, max_video_windows=3)
    expected = VideoLimits(max_seconds=60, max_frames=7, max_pixels=5, max_windows=3)
    assert settings.media_limits[Modality.VIDEO] == expected


def test_limits_on_a_sound():
    limits = Settings(max_audio_seconds=60, max_audio_channels=2, max_windows=3).audio_limits
    assert (limits.max_seconds, limits.max_channels, limits.max_windows) == (60, 2, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"media_decode_timeout": float("inf")},
        {"max_windows": 1001},
        {"max_video_windows": 49},
        {"max_video_seconds": float("inf")},
    ],
)
def test_what_no_decode_worker_can_keep_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="less than or equal to"):
        Settings(**settings)
