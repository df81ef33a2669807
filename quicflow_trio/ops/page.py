"""The live page: one file, and the policy by which a browser runs just what is in it."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files

from starlette.responses import Response

__all__ = ["LivePage"]

_BLOCK = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL | re.IGNORECASE)


class LivePage:
    """The page's file, read once.

    Raises:
        FileNotFoundError: the installation lacks it.
    """

    def __init__(self) -> None:
        self._html = files(__package__).joinpath("page.html").read_bytes()
        self._policy = policy_for(self._html)

    def response(self) -> Response:
        """Return the answer that shows it."""
        headers = {"Content-Security-Policy": self._policy, "X-Frame-Options": "DENY"}
        return Response(self._html, headers=headers, media_type="text/html")


def policy_for(html: bytes) -> str:
    """Return the Content-Security-Policy of a page: its own scripts and styles by their hashes, requests to its own server only."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, text in _BLOCK.findall(html):
        hashes[kind.lower()].append(f"'sha256-{b64encode(sha256(text).digest()).decode('ascii')}'")
    return "; ".join(
        [
            "default-src 'none'",
            " ".join(["script-src", *(hashes[b"script"] or ["'none'"])]),
            " ".join(["style-src", *(hashes[b"style"] or ["'none'"])]),
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
