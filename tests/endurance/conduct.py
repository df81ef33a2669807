"""How each proof is run: with a folder for its ledgers and a progress bar, to its report: `conduct`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import trio
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from quicflow_trio.cli.common import until_signalled
from tests.endurance.ledger import Account, What
from tests.endurance.report import Report

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Bar", "Common", "balance", "conduct", "quantiles"]

RESULTS = Path(__file__).resolve().parent / "results"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Common:
    """What every proof takes.

    Attributes:
        results: folder for the JSON.
        keep: folder for the ledgers, which are thrown away otherwise.
    """

    results: Annotated[Path, Parameter(show_default=False)] = RESULTS
    keep: Path | None = None


class Bar:
    """The progress bar, or none."""

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._task = None if progress is None else progress.add_task("")

    def show(self, done: float, total: float, what: str) -> None:
        """Show how far it is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, description=what)


Settings = TypeVar("Settings", bound="DataclassInstance")
Proof = Callable[[Settings, Path, Bar, Report], Awaitable[None]]


async def conduct(name: str, proof: Proof[Settings], settings: Settings, common: Common) -> None:
    """Run a proof, print and write what it found, and end the process: with 1 where something does not hold, 130 after a Ctrl-C."""
    # Not left to KeyboardInterrupt, which comes out of whatever runs: out of a callback that nobody listens to, it is lost.
    code = await until_signalled(partial(_run, name, proof, settings, common))
    if code > 1:
        print("interrupted", file=sys.stderr)
    sys.exit(code)


async def _run(name: str, proof: Proof[Settings], settings: Settings, common: Common) -> int:
    report = Report(name, asdict(settings))
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    # Twice a second: it draws in the process that relays the datagrams.
    with Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal) as progress:
        await prove(proof, settings, report, Bar(progress), common.keep)
    report.finish(common.results)
    return 0 if report.held else 1


async def prove(proof: Proof[Settings], settings: Settings, report: Report, bar: Bar, keep: Path | None = None) -> None:
    """Run a proof into its report, its ledgers in a folder of their own."""
    started = time.monotonic()
    if keep is not None:
        await trio.Path(keep).mkdir(parents=True)
        await proof(settings, keep, bar, report)
    else:
        with tempfile.TemporaryDirectory(prefix="quicflow-endurance-") as folder:
            await proof(settings, Path(folder), bar, report)
    report.figures["seconds in all"] = time.monotonic() - started


def quantiles(values: list[float]) -> Mapping[str, float]:
    """Return P50, P99 and the largest."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"P50": ordered[last // 2], "P99": ordered[min(last, round(0.99 * len(ordered)))], "max": ordered[last]}


def balance(report: Report, folder: Path, *, restarts: bool = False, errors: Mapping[str, int]) -> Account:
    """Hold what all ledgers say together against the promise.

    Args:
        report: where to.
        folder: of the ledgers.
        restarts: whether processes were killed: then messages may be lost, or handled again, where their sender knows.
        errors: what calls raised, by name.
    """
    account = Account(sorted(folder.glob("*.ledger")))
    counts = account.counts
    report.exactly("acked and not handled", account.acked_and_lost(), 0)
    report.exactly("handled twice", account.handled_twice(), 0)
    report.exactly("answered with another's result", counts[What.MIXED_UP], 0)
    report.exactly("handled and never sent", account.unheard_of(), 0)
    report.exactly("calls without one end", account.without_end(), 0)
    report.exactly("redelivered unasked", account.again_unasked(), 0)
    if restarts:
        report.exactly("messages with delivery=REDELIVER that were never handled", account.redeliver_lost(), 0)
    else:
        report.exactly("delivered and not handled", account.delivered_and_lost(), 0)
        report.exactly("handler runs beyond distinct ids", account.runs - account.distinct, 0)
    report.figures |= {f"calls {what.name.lower()}": counts[what] for what in What if counts[what]}
    report.notes += [f"{count:,} calls raised {name}" for name, count in sorted(errors.items())]
    return account


def total(figures: Mapping[str, Any]) -> int:
    """Return how many calls the clients of a crowd have ended."""
    return sum(figures["done"].values())
