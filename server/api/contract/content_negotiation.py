"""What a client prefers of two media types (RFC 9110, section 12.5.1), and how it may send."""

from __future__ import annotations

from starlette.datastructures import Headers

from server.errors import UnsupportedFormat


def check_not_compressed(headers: Headers) -> None:
    """Raise `UnsupportedFormat` if a body is compressed (RFC 9110, section 8.4)."""
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedFormat(
            "compressed bodies are not supported; images are compressed already"
        )


def prefers(accept: str | None, offered: str, default: str) -> bool:
    """Whether an ``Accept`` header ranks the media type ``offered`` above ``default``."""
    return accept is not None and quality(accept, offered) > quality(accept, default)


def quality(accept: str, media_type: str) -> float:
    """Return the weight of ``media_type``, 0 to 1; the most specific matching range decides.

    A range that cannot be parsed matches nothing.
    """
    main_type = media_type.partition("/")[0]
    specificities = {"*/*": 0, f"{main_type}/*": 1, media_type: 2}
    best_specificity = -1
    weight = 0.0
    for media_range in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in media_range.split(";"))
        specificity = specificities.get(name, -1)
        if specificity > best_specificity:
            best_specificity = specificity
            weight = _parse_weight(parameters)
    return weight


def _parse_weight(parameters: list[str]) -> float:
    """Return the ``q`` of a range: 1 where it is missing, 0 where it is no number."""
    weights = [parameter.removeprefix("q=") for parameter in parameters if parameter[:2] == "q="]
    if not weights:
        return 1.0
    try:
        weight = float(weights[0])
    except ValueError:
        return 0.0
    return min(max(weight, 0.0), 1.0)
