"""The server's HTML pages, with their security headers, and the files that they load."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import HTMLResponse, Response

STATIC_FOLDER = Path(__file__).parents[1] / "static"

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".flac": "audio/flac",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".ogg": "audio/ogg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wav": "audio/wav",
    ".webm": "video/webm",
}
_EXAMPLES = "examples/"
_EXTERNAL_SCRIPT = r"<script\b[^>]* src="
_EXTERNAL_STYLE = r"<link\b[^>]* rel=\"?stylesheet"
_ETAG_LENGTH = 32  # hex digits: 128 bits, so no two files share a tag


class Page:
    """An HTML file of ``static/``. It loads from this server only, and cannot be framed."""

    def __init__(self, name: str) -> None:
        self._html = (STATIC_FOLDER / name).read_text("utf-8")
        self._headers = {
            "Content-Security-Policy": content_security_policy(self._html),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
        }

    def response(self) -> HTMLResponse:
        """Return the page with its headers."""
        return HTMLResponse(self._html, headers=self._headers)


@dataclass(frozen=True)
class Asset:
    """A file that a page loads, held in memory."""

    content: bytes
    media_type: str

    @property
    def etag(self) -> str:
        """The entity tag of the file (RFC 9110, section 8.8.3)."""
        digest = hashlib.sha256(self.content).hexdigest()
        return f'"{digest[:_ETAG_LENGTH]}"'

    def response(self, if_none_match: str = "") -> Response:
        """Return the file, or 304 if the header ``if_none_match`` has its entity tag."""
        # A browser revalidates each file at each load, for a few bytes. So a page never mixes files
        # of two releases.
        headers = {
            "ETag": self.etag,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        known_etags = re.findall(r'"[^"]*"', if_none_match)
        if self.etag in known_etags:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def load_assets(folder: Path) -> dict[str, Asset]:
    """Return the files in and below ``folder`` that a page can load, by their relative path.

    One more, ``examples.js``, lists those in its ``examples``.
    """
    assets = {}
    for path in sorted(folder.rglob("*")):
        media_type = _MEDIA_TYPES.get(path.suffix)
        if media_type is not None:
            name = path.relative_to(folder).as_posix()
            assets[name] = Asset(path.read_bytes(), media_type)
    assets["examples.js"] = list_examples(assets)
    return assets


def list_examples(assets: Mapping[str, Asset]) -> Asset:
    """Return a script that exports the names of the examples, in a list for each modality."""
    names: dict[str, list[str]] = {}
    for path, asset in assets.items():
        if path.startswith(_EXAMPLES):
            modality = asset.media_type.partition("/")[0]
            names.setdefault(modality, []).append(path.removeprefix(_EXAMPLES))
    script = f"export default {json.dumps(names)};\n"
    return Asset(script.encode(), _MEDIA_TYPES[".js"])


def content_security_policy(html: str) -> str:
    """Return the Content-Security-Policy of ``html`` (W3C CSP Level 3).

    It allows the inline scripts and styles of the page, files of this server, and pictures, sounds
    and videos that the page itself makes.
    """
    directives = [
        "default-src 'none'",
        f"script-src {allowed_sources(html, 'script', _EXTERNAL_SCRIPT)}",
        f"style-src {allowed_sources(html, 'style', _EXTERNAL_STYLE)}",
        "connect-src 'self'",
        "img-src 'self' blob: data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return "; ".join(directives)


def allowed_sources(html: str, tag: str, external_pattern: str) -> str:
    """Return the source list of a CSP directive.

    Args:
        tag: the inline elements that are allowed, each by its hash.
        external_pattern: matches elements that load a file, for which ``'self'`` is allowed.
    """
    inline_element = rf"<{tag}\b(?![^>]* src=)[^>]*>(.*?)</{tag}>"
    sources = []
    for content in re.findall(inline_element, html, re.DOTALL):
        digest = hashlib.sha256(content.encode()).digest()
        sources.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    if re.search(external_pattern, html):
        sources.append("'self'")
    if not sources:
        return "'none'"
    return " ".join(sources)
