"""The recordings: which packages of Debian hold them, what they speak, and what they are for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

LANGUAGES = ("en", "es", "fr", "it", "ru")
LABELS = ("English", "Spanish", "French", "Italian", "Russian")

ASTERISK = Path("/usr/share/asterisk/sounds")
KLETTRES = Path("/usr/share/klettres")
KTUBERLING = Path("/usr/share/ktuberling/sounds")

# Tones and noises. The International Civil Aviation Organization's alphabet (phonetic/) has the
# same words in every language.
NOT_SPEECH = (
    "ascending-2tone",
    "beep",
    "beeperr",
    "confbridge-join",
    "confbridge-leave",
    "descending-2tone",
    "phonetic/",
    "silence/",
    "tt-monkeys",
)
HELD_OUT_SHARE = 0.2  # of the prompts of the speakers that are trained on


class Role(StrEnum):
    """What a recording is for."""

    TRAIN = "train"
    HELD_OUT_CLIP = "clips"  # of a speaker that is trained on
    HELD_OUT_SPEAKER = "speakers"


@dataclass(frozen=True)
class Source:
    """The recordings of one speaker, or of one package, in one language.

    Attributes:
        folder: where the files are, in folders of their own or not.
        suffix: of the files; ``.gsm`` files have no header.
        trained: whether recordings of it may be trained on.
    """

    name: str
    language: str
    folder: Path
    suffix: str
    trained: bool


SOURCES = (
    Source("allison-en", "en", ASTERISK / "en_US_f_Allison", ".wav", trained=True),
    Source("allison-es", "es", ASTERISK / "es_MX_f_Allison", ".wav", trained=True),
    Source("june-fr", "fr", ASTERISK / "fr_CA_f_June", ".wav", trained=True),
    Source("carlo-it", "it", ASTERISK / "it_IT_m_Carlo", ".wav", trained=True),
    Source("menardi-it", "it", ASTERISK / "it_IT_f_Menardi", ".wav", trained=True),
    Source("ivrvoice-ru", "ru", ASTERISK / "ru_RU_f_IvrvoiceRU", ".wav", trained=True),
    Source("armelle-fr", "fr", ASTERISK / "fr", ".gsm", trained=False),
    Source("colombia-es", "es", ASTERISK / "es", ".gsm", trained=False),
    *(
        Source(f"klettres-{language}", language, KLETTRES / language, ".ogg", trained=False)
        for language in LANGUAGES
    ),
    *(
        Source(f"ktuberling-{language}", language, KTUBERLING / language, ".ogg", trained=False)
        for language in LANGUAGES
    ),
)


@dataclass(frozen=True)
class Recording:
    """One file, and the name of its prompt, which is the same in all languages."""

    source: Source
    path: Path
    prompt: str

    @property
    def role(self) -> Role:
        """What it is for. A prompt is held out in all languages or in none."""
        if not self.source.trained:
            return Role.HELD_OUT_SPEAKER
        digest = hashlib.sha256(self.prompt.encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32
        return Role.HELD_OUT_CLIP if held_out else Role.TRAIN


def recordings(source: Source) -> list[Recording]:
    """Return the recordings of speech of ``source`` by path; none if it is not installed."""
    found = []
    for path in sorted(source.folder.rglob(f"*{source.suffix}")):
        prompt = path.relative_to(source.folder).with_suffix("").as_posix()
        is_speech = not any(_is(prompt, name) for name in NOT_SPEECH)
        if is_speech:
            found.append(Recording(source, path, prompt))
    return found


def _is(prompt: str, name: str) -> bool:
    if name.endswith("/"):
        return prompt.startswith(name)
    return prompt == name
