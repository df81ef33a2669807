"""The `quicflow` command. `main` is its entry point; each command has a module of its own, which is imported when it is called."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
