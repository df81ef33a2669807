"""`quicflow top`: a running server in a terminal."""

from __future__ import annotations

from .command import app

__all__ = ["app"]
