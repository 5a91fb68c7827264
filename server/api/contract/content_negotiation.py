"""Which of two media types a client would rather have (RFC 9110, section 12.5.1)."""

from __future__ import annotations


def prefers(accept: str | None, offered: str, default: str) -> bool:
    """Whether an ``Accept`` header ranks the media type ``offered`` above ``default``."""
    return accept is not None and quality(accept, offered) > quality(accept, default)


def quality(accept: str, media_type: str) -> float:
    """How much ``media_type`` is wanted, 0 to 1: by the range that names it best; what cannot be read names nothing."""
    kind = media_type.partition("/")[0]
    ranks = {"*/*": 0, f"{kind}/*": 1, media_type: 2}
    best = -1
    found = 0.0
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        rank = ranks.get(name, -1)
        if rank > best:
            best = rank
            found = _weight(parameters)
    return found


def _weight(parameters: list[str]) -> float:
    weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
    try:
        return min(max(float(weights[0]), 0.0), 1.0) if weights else 1.0
    except ValueError:
        return 0.0
