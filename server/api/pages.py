"""HTML pages of our own: one file each, which may load nothing from elsewhere and be framed by nobody."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi.responses import HTMLResponse

_FOLDER = Path(__file__).parent / "static"


class Page:
    """A file of ``static/``. Its own scripts and styles are allowed by their hashes, and nothing else is."""

    def __init__(self, name: str) -> None:
        self._html = (_FOLDER / name).read_text("utf-8")
        self._headers = {
            "Content-Security-Policy": content_security_policy(self._html),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
        }

    def response(self) -> HTMLResponse:
        """The page, with its headers."""
        return HTMLResponse(self._html, headers=self._headers)


def content_security_policy(html: str) -> str:
    """The policy (W3C CSP Level 3) under which ``html`` works: what is in it, this server, and pictures it made."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {sources(html, 'script')}",
            f"style-src {sources(html, 'style')}",
            "connect-src 'self'",
            "img-src 'self' blob: data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def sources(html: str, tag: str) -> str:
    """The hashes of all inline elements ``tag``, or ``'none'``."""
    contents = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", html, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
