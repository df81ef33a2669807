"""What is there of the peers' packages and programs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["missing", "nats_server", "versions"]


def nats_server() -> str | None:
    """Return the path of ``nats-server``: from PATH, or beside this Python, where a package installs it; None when there is none."""
    return shutil.which("nats-server") or shutil.which("nats-server", path=str(Path(sys.executable).parent))


def missing(packages: tuple[str, ...], *, broker: bool = False) -> list[str]:
    """Return which of these packages, and of the programs, cannot be found."""
    absent = [package for package in packages if find_spec(package) is None]
    if broker and nats_server() is None:
        absent.append("nats-server")
    return absent


def versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of those that are installed; a broker may come from elsewhere."""
    found = {}
    for distribution in distributions:
        try:
            found[distribution] = version(distribution)
        except PackageNotFoundError:
            found[distribution] = "not a package"
    return found
