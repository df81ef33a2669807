"""Settings for every test. Warnings are errors by `filterwarnings` in pyproject.toml."""

from __future__ import annotations

from hypothesis import settings

# Fixed seeds: a failure seen once is seen again. No deadline: a test says nothing about the speed of the machine it runs on.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")
