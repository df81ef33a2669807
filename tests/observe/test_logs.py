"""Text of peers in log lines."""

from __future__ import annotations

import pytest

from quicflow_trio.observe.logs import LONGEST, printable


@pytest.mark.parametrize("text", ["", "worker-1", "Zoë 工場", "x" * LONGEST])
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", ["a\nb", "a\x00", "\x1b[31m", "a\u2028b", "\ud800", "a\r\nERROR forged"])
def test_control_characters_are_escaped(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.isascii()


def test_long_text_is_cut() -> None:
    assert len(printable("x" * 1_000_000)) == LONGEST
    assert printable("x" * 1_000_000).endswith("...")
    assert len(printable("\x00" * 1_000)) == LONGEST
