"""The ops side of a server: its metrics, clients, events and commands over HTTP, for those who operate it.

It sees the server through `view` only, runs beside it in its nursery, and whatever happens to it, messages go on. It never raises once
it listens; `http` says how that is done. Reading is open on the machine itself, anything else wants a token: see `auth`.
"""

from __future__ import annotations

from .service import bind_ops, run_ops

__all__ = ["bind_ops", "run_ops"]
