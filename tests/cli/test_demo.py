"""`quicflow demo`: what it shows happened, and when something did not, it says so and fails."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import trio

from quicflow_trio import ConnectionLost
from quicflow_trio.cli import demo as demo_module
from quicflow_trio.cli.demo_cast import NAMES, Cast
from quicflow_trio.cli.demo_stage import Stage
from quicflow_trio.cli.demo_steps import STEPS, Step

from .conftest import Quicflow

pytestmark = pytest.mark.realtime


def test_the_demo(quicflow: Quicflow) -> None:
    ran = quicflow("demo")
    assert (ran.code, ran.err) == (0, "")
    titles = re.findall(r"^(\d+)\. (.*)$", ran.out, re.MULTILINE)
    assert titles == [(str(number), step.title) for number, step in enumerate(STEPS, 1)]
    for said in (
        "nothing came to ada, cleo, dora, emil",
        "acked by ada, ben, cleo, dora, emil",
        "'HELLO BACKBONE'",
        "HandlerFailed: RuntimeError: the printer is out of paper",
        "AckTimeout after",
        "the server cancelled the handler",
        "got SessionReplaced",
        "emil was disconnected and came back by itself",
        "what was under way was answered",
    ):
        assert said in ran.out
    for name in NAMES:
        assert f"│ {name} " in ran.out
    assert ran.out.endswith(" s.\n")
    # The server's own figures, after it has stopped: one handler has raised, one was taken back.
    figures = ran.out.partition("What the server counted")[2]
    assert "messages sent, received" in figures
    assert re.search(r"messages failed, cancelled +│ +1, 1 ", figures)
    # Plain text when it is not a terminal.
    assert "\x1b" not in ran.out


def test_verbose_shows_the_log(quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "STEPS", STEPS[:1])
    ran = quicflow("demo", "--verbose")
    assert ran.code == 0
    assert re.search(r"client connected +connection=\d+ client_id=ada remote=127\.0\.0\.1:", ran.err)


async def untrue(cast: Cast, stage: Stage) -> None:
    await trio.lowlevel.checkpoint()
    stage.check(False, "two and two are five")


async def slow(cast: Cast, stage: Stage) -> None:
    await trio.sleep_forever()


async def broken(cast: Cast, stage: Stage) -> None:
    async with trio.open_nursery() as nursery:  # noqa: ASYNC112  for the group that it makes of the error
        nursery.start_soon(lost)


async def lost() -> None:
    await trio.lowlevel.checkpoint()
    raise ConnectionLost("the network is gone")


@pytest.mark.parametrize(
    ("play", "problem"),
    [
        (untrue, "this does not hold: two and two are five"),
        (slow, "it did not end within 0.2 s"),
        (broken, "ConnectionLost: the network is gone"),
    ],
)
def test_a_step_that_goes_wrong_is_named(quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch, play: object, problem: str) -> None:
    monkeypatch.setattr(demo_module, "STEP_SECONDS", 0.2)
    monkeypatch.setattr(demo_module, "STEPS", (Step("Odd", "Something odd happens.", play),))  # type: ignore[arg-type]
    ran = quicflow("demo")
    assert (ran.code, ran.err) == (1, f"quicflow: step 1 (Odd): {problem}\n")
    assert "All" not in ran.out


def test_a_step_whose_promise_fails_is_noticed(quicflow: Quicflow, monkeypatch: pytest.MonkeyPatch) -> None:
    # Handlers that answer differently: every step must compare what came with what it said.
    async def other(self: object, request: object) -> bytes:
        return b"something else"

    monkeypatch.setattr("quicflow_trio.cli.demo_cast.Workshop._command", other)
    connect, *others = STEPS
    for step in others:
        if step.title in {"Request", "A handler fails", "A timeout", "A forced reconnect"}:
            monkeypatch.setattr(demo_module, "STEPS", (connect, step))
            ran = quicflow("demo")
            assert ran.code == 1
            assert f"step 2 ({step.title})" in ran.err


def test_it_prints_also_where_only_ascii_can_be_printed() -> None:
    source = "import sys; from quicflow_trio.cli import demo, main; demo.STEPS = demo.STEPS[:1] + demo.STEPS[-1:]; sys.exit(main(['demo']))"
    run = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", source],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("columns", [100, 72, 60, 40, 12])
def test_no_figure_is_cut_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    headings = ("client", "connects", "sent", "RTT ms", "bytes sent", "bytes received")
    row = ("ada", "1", "1,234", "0.25", "123,456,789", "987,654,321")
    Stage().table("Clients", headings, [row])
    lines = capsys.readouterr().out.splitlines()
    (shown,) = [line.strip("│").replace("│", " ").split() for line in lines if "ada" in line]
    assert tuple(shown) == row[: len(shown)]
    # What can be shown, is.
    assert len(shown) == {100: 6, 72: 6, 60: 5, 40: 4, 12: 1}[columns]
