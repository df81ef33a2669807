"""Settings for every test. Warnings are errors by `filterwarnings` in pyproject.toml."""

from __future__ import annotations

import pytest
from hypothesis import settings

from quicflow_trio.observe import logs

# Fixed seeds: a failure seen once is seen again. No deadline: a test says nothing about the speed of the machine it runs on.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _no_repeats() -> None:
    """Let no test see fewer log lines because others before it, within ten seconds, have caused the same ones."""
    logs.limiter.clear()
