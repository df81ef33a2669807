"""The benchmarks' harness: what counts as a figure, which samples are marked, in which order sides run, what is written."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.harness.hiccups import AT_LEAST, NAP, Hiccup, HiccupLog, find_overrun, watch_hiccups
from benchmarks.harness.machine import machine
from benchmarks.harness.plots import plot_lines
from benchmarks.harness.process import child_process, cpu_seconds, rss_bytes, run_client
from benchmarks.harness.results import Report, Row, Sample, percentile, write
from benchmarks.harness.rounds import run_rounds
from benchmarks.harness.session import interruptible


def row(name: str, *values: float, paused: tuple[int, ...] = (), unit: str = "msg/s", against: str | None = None) -> Row:
    samples = tuple(Sample(value, 20.0 if number in paused else 0.0) for number, value in enumerate(values))
    return Row(name, unit, samples, against=against)


def report(*rows: Row, compared: bool = True) -> Report:
    return Report("trial", "a title", rows, {"rounds": 3}, {"cpu": "some"}, compared=compared)


def drawn(made: Report) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(made.table())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# -- figures -----------------------------------------------------------------------------------------------------------
def test_the_median_leaves_out_what_a_pause_hit() -> None:
    one = row("x", 10, 1, 11, 2, 12, paused=(1, 3))
    assert one.median == 11
    assert (one.low, one.high, one.hiccups) == (1, 12, 2)


def test_the_median_is_of_all_when_most_were_hit() -> None:
    assert row("x", 10, 1, 2, paused=(1, 2)).median == 2
    assert row("x", 10, 20, 1, 2, paused=(2, 3)).median == 15, "half without a pause is enough"


def test_a_row_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="x: a row needs a sample"):
        row("x")


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3, 1, 2, 4], 0.5) == 2
    assert percentile([3, 1, 2, 4], 0.99) == 4
    assert percentile([7], 0.01) == 7


def test_ratios_pair_what_was_measured_in_one_round() -> None:
    # The machine was three times slower in the last round; the ratio does not move.
    made = report(row("a", 300, 300, 100), row("b", 150, 150, 50))
    assert [made.ratio(one) for one in made.rows] == [1.0, 0.5]


def test_rows_of_other_units_are_not_compared_unless_they_say_so() -> None:
    made = report(row("a", 4), row("b", 2, unit="ms"))
    assert [made.ratio(one) for one in made.rows] == [None, None]
    assert "ratio" not in drawn(made)
    made = report(row("a", 4), row("b", 2, unit="ms"), row("c", 3, unit="ms", against="b"))
    assert [made.ratio(one) for one in made.rows] == [None, None, 1.5]
    assert report(row("a", 4), row("b", 2), compared=False).ratio(row("b", 2)) is None


def test_the_table_says_how_many_samples_were_hit() -> None:
    text = drawn(report(row("a", 70_000, 71_000, paused=(1,)), row("b", 0.123, 0.125)))
    assert "70,000" in text
    assert "0.124" in text
    assert "1 of 2" in text
    assert "1 of 4 samples" in text
    assert "paused" not in drawn(report(row("a", 1)))


def test_json_holds_every_sample(tmp_path: Path) -> None:
    made = report(row("a", 1, 2, 3, paused=(2,)), row("b", 2, 2, 2))
    path = write(made, tmp_path / "new")[0]
    read = json.loads(path.read_text(encoding="utf-8"))
    assert path.name == "trial.json"
    assert read["rows"][0]["samples"][2] == {"value": 3, "hiccup": 20.0}
    assert read["rows"][0]["median"] == 1.5
    assert read["rows"][1]["against"] == "a"
    assert read["rows"][1]["ratio"] == 1.5
    assert (read["settings"], read["machine"]) == ({"rounds": 3}, {"cpu": "some"})


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is optional")
def test_pictures_are_drawn(tmp_path: Path) -> None:
    made = report(row("a_b $x$", 1, 2, 30, paused=(0,)), row("b", 2, unit="ms"))
    plot_lines(tmp_path / "lines.png", {"x": [(1, 2), (10, 2)]}, title="t", xlabel="x", ylabel="y", logx=True)
    for path in (write(made, tmp_path)[1], tmp_path / "lines.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


# -- pauses ------------------------------------------------------------------------------------------------------------
def test_a_nap_that_takes_long_is_a_pause() -> None:
    assert find_overrun(5.0, 5.0 + NAP + AT_LEAST / 2) is None
    assert find_overrun(5.0, 5.0) is None, "a question ended the nap"
    found = find_overrun(5.0, 5.0 + NAP + 0.5)
    assert found is not None
    assert found == pytest.approx((5.0 + NAP, 0.5))


def test_pauses_are_found_by_the_stretch_they_touch() -> None:
    log = HiccupLog([Hiccup(1.0, 0.5), Hiccup(3.0, 0.02)])
    assert log.longest(0.0, 10.0) == 0.5
    assert log.longest(1.4, 3.01) == 0.5
    assert log.longest(1.6, 3.01) == 0.02
    assert log.longest(1.6, 2.9) == 0.0
    assert log.undisturbed([(0.5, 0.9), (0.9, 1.1), (1.6, 2.0), (2.9, 3.5), (4.0, 5.0)]) == [(0.5, 0.9), (1.6, 2.0), (4.0, 5.0)]
    assert log.undisturbed([]) == []


@pytest.mark.realtime
def test_the_watcher_answers_and_ends() -> None:
    with watch_hiccups() as log:
        start = time.monotonic()
        time.sleep(0.02)
        end = time.monotonic()
        # Whether this machine pauses now is not known; what it answers lies within the stretch or touches it.
        assert all(hiccup.start < end and hiccup.end > start for hiccup in log.between(start, end))
        assert log.longest(0.0, 0.001) == 0.0


# -- rounds ------------------------------------------------------------------------------------------------------------
def test_sides_take_turns_and_the_order_turns_round() -> None:
    ran: list[str] = []

    def side(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    found = run_rounds({"a": lambda: side("a"), "b": lambda: side("b")}, 2, log=HiccupLog())
    assert ran == ["b", "a", "a", "b", "b", "a"]
    assert {name: [sample.value for sample in samples] for name, samples in found.items()} == {"a": [3, 6], "b": [4, 5]}
    ran.clear()
    run_rounds({"a": lambda: side("a"), "b": lambda: side("b")}, 1, log=HiccupLog(), warm_up=False)
    assert ran == ["a", "b"]


def test_samples_are_marked_by_the_pauses_during_their_run() -> None:
    log = HiccupLog()
    hiccups: list[Hiccup] = log._hiccups

    def hit() -> dict[str, float | Sample]:
        hiccups.append(Hiccup(time.monotonic() - 0.001, 0.05))
        time.sleep(0.001)
        return {"": 1.0, "own mark": Sample(2.0)}

    found = run_rounds({"hit": hit}, 1, log=log, warm_up=False)
    assert found["hit"][0].hiccup == pytest.approx(50.0)
    assert found["hit: own mark"] == [Sample(2.0)]


# -- processes ---------------------------------------------------------------------------------------------------------
def test_figures_of_a_process_come_from_the_operating_system() -> None:
    start = cpu_seconds(os.getpid())
    mine = time.process_time()
    sum(range(200_000))
    assert cpu_seconds(os.getpid()) - start == pytest.approx(time.process_time() - mine, abs=0.5)
    assert rss_bytes(os.getpid()) > 5_000_000


@pytest.mark.realtime
def test_a_client_that_fails_shows_its_error() -> None:
    with pytest.raises(SystemExit, match=r"benchmarks\.nowhere failed"):
        run_client("benchmarks.nowhere")


@pytest.mark.realtime
def test_what_a_command_in_front_says_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chatty = tmp_path / "chatty.py"
    chatty.write_text("import os, sys\nprint('watching', flush=True)\nos.execv(sys.argv[1], sys.argv[1:])\n", encoding="utf-8")
    code = "import json, sys\nprint(json.dumps({'n': 1}), flush=True)\nfor line in sys.stdin: print(line, end='', flush=True)\n"
    (tmp_path / "echo_child.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with child_process("echo_child", before=(sys.executable, str(chatty))) as child:
        assert child.hello == {"n": 1}
        assert child.ask(x=2) == {"x": 2}
    assert child.process.returncode == 0
    with child_process("echo_child") as child:
        child.process.kill()
        with pytest.raises(SystemExit, match="has ended"):
            child.answer()


def test_an_interrupt_out_of_a_nursery_ends_quietly(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, interruptible():
        raise BaseExceptionGroup("", [KeyboardInterrupt(), ConnectionResetError()])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(ExceptionGroup), interruptible():
        raise ExceptionGroup("", [ValueError()])


def test_the_machine_is_named() -> None:
    found = machine()
    assert found["cpu"]
    assert isinstance(found["cores"], int)
    assert {"kernel", "python", "trio", "aioquic", "quicflow_trio", "cryptography", "commit", "date"} <= set(found)
