"""Lets ``python -m quicflow_trio.cli`` stand in for `quicflow`, where the script is not on PATH (`load` starts its server so)."""

from __future__ import annotations

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
