"""HTML pages of our own, which may load nothing from elsewhere and be framed by nobody, and the files they load."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fastapi.responses import HTMLResponse, Response

FOLDER = Path(__file__).parents[1] / "static"

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_SCRIPT_FILE = r"<script\b[^>]* src="
_STYLE_FILE = r"<link\b[^>]* rel=\"?stylesheet"


class Page:
    """A file of ``static/``. Its own scripts and styles are allowed by their hashes, this server's if it names any."""

    def __init__(self, name: str) -> None:
        self._html = (FOLDER / name).read_text("utf-8")
        self._headers = {
            "Content-Security-Policy": content_security_policy(self._html),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
        }

    def response(self) -> HTMLResponse:
        """The page, with its headers."""
        return HTMLResponse(self._html, headers=self._headers)


@dataclass(frozen=True)
class Asset:
    """A file that a page loads, held in memory."""

    content: bytes
    media_type: str

    @property
    def tag(self) -> str:
        """Its entity tag (RFC 9110, section 8.8.3)."""
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'

    def response(self, known: str = "") -> Response:
        """The file, or 304 with no content for a client that has it, by its If-None-Match header ``known``."""
        # Asked for anew each time, at the cost of a few bytes: files of two releases never meet in
        # one page.
        headers = {
            "ETag": self.tag,
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
        }
        if self.tag in re.findall(r'"[^"]*"', known):
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def load_assets(folder: Path) -> dict[str, Asset]:
    """The files in and below ``folder`` that a page can load, by their path in it."""
    return {
        path.relative_to(folder).as_posix(): Asset(path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(folder.rglob("*"))
        if path.suffix in _MEDIA_TYPES
    }


def content_security_policy(html: str) -> str:
    """The policy (W3C CSP Level 3) under which ``html`` works: what is in it, this server, and pictures it made."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {sources(html, 'script', _SCRIPT_FILE)}",
            f"style-src {sources(html, 'style', _STYLE_FILE)}",
            "connect-src 'self'",
            "img-src 'self' blob: data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def sources(html: str, tag: str, outside: str) -> str:
    """The hashes of all inline elements ``tag``, and ``'self'`` if ``html`` loads others, as ``outside`` finds."""
    contents = re.findall(rf"<{tag}\b(?![^>]* src=)[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    hashes = [
        base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents
    ]
    allowed = [f"'sha256-{value}'" for value in hashes] + ["'self'"] * bool(
        re.search(outside, html)
    )
    return " ".join(allowed) or "'none'"
