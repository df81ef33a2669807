"""`quicflow simulate`: break the network, the clocks and the programs, and see whether the promise holds."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

import trio
from cyclopts import App, Parameter, validators

from ..simulate import Scenario, Verdict, make_schedule, make_settings
from ..simulate.figures import add
from ..simulate.pool import Pool, open_pool
from ..simulate.shrink import shrink
from .common import ExitCode, Flag, JsonFlag, until_signalled

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["app"]

EPILOGUE = """A server and its clients run on a network in memory, in virtual time. One seed
decides the traffic and the faults: loss, delay, jitter, duplication, reordering,
corruption, partitions, new addresses, kills and restarts, slow and stuck
handlers, slow readers, cancelled callers, clock jumps. It also decides how the
programs are set up: heartbeats, redelivery, credentials that expire, what becomes
of messages for a client that is away. Everything that happens is recorded, and
the record is held against what the README promises.

The same seed gives the same history, on any machine: its hash is shown. A seed
that breaks the promise is run again with fewer and fewer of its faults, and the
command that replays what is left is printed.

Exit codes: 0 the promise held, 1 it was broken, 2 usage, 130 interrupted.

Examples:
  quicflow simulate
  quicflow simulate --seeds 1000 --hours 5 --clients 4
  quicflow simulate --seed 17 --history history.txt
  quicflow simulate --faults light --hours 720 --clients 3 --seeds 2   # 30 days
"""

SHOWN_VIOLATIONS = 5
SHOWN_FAILURES = 10

app: App = App(name="simulate", help_epilogue=EPILOGUE)


def _whole(low: int, high: int) -> Parameter:
    return Parameter(validator=validators.Number(gte=low, lte=high))


@app.default
async def simulate(
    *,
    hours: Annotated[float, Parameter(validator=validators.Number(gt=0, lte=8784))] = 1.0,
    clients: Annotated[int, _whole(1, 1000)] = 4,
    seeds: Annotated[int | None, _whole(1, 1_000_000)] = None,
    faults: Literal["none", "light", "normal", "heavy"] = "normal",
    seed: int | None = None,
    keep: str | None = None,
    jobs: Annotated[int | None, _whole(1, 1024)] = None,
    shrink_tries: Annotated[int, _whole(0, 10_000)] = 40,
    history: Path | None = None,
    json_output: JsonFlag = False,
    quiet: Flag = False,
) -> int:
    """Try to break the promise, in simulated hours.

    Args:
        hours: simulated hours for each seed.
        clients: clients beside the one server.
        seeds: how many seeds; 10, or the one that --seed names.
        faults: how many faults there are, and how much traffic.
        seed: the first seed.
        keep: numbers of the faults that happen, 3,17,18 or none; without it all of the seed's.
        jobs: simulations at once; without it one for each core.
        shrink_tries: how often a seed that fails may be run again for fewer faults; 0 does not.
        history: write everything that happened to this file; for one seed.
        json_output: print one JSON object instead of tables.
        quiet: show no progress.
    """
    first = 1 if seed is None else seed
    count = seeds if seeds is not None else (10 if seed is None else 1)
    if history is not None and count != 1:
        print("quicflow: --history is for one seed: give --seed", file=sys.stderr)
        return ExitCode.USAGE
    try:
        kept = None if keep is None else tuple(int(part) for part in keep.split(",") if part not in ("", "none"))
    except ValueError:
        print(f"quicflow: --keep {keep}: expected numbers, 3,17,18, or none", file=sys.stderr)
        return ExitCode.USAGE
    scenarios = [Scenario(seed=first + number, hours=hours, clients=clients, faults=faults, keep=kept) for number in range(count)]
    run = Run(scenarios, history, shrink_tries)
    # The report stands outside: what was found by then is worth as much after a Ctrl-C.
    code = await until_signalled(partial(run.run, jobs or os.cpu_count() or 1, show=not quiet and sys.stderr.isatty()))
    if json_output:
        print(json.dumps(run.as_json()))
    else:
        run.print()
    return code


@final
class Run:
    """Some seeds, and what came of them so far."""

    def __init__(self, scenarios: list[Scenario], history: Path | None, shrink_tries: int) -> None:
        self.scenarios = scenarios
        self.verdicts: list[Verdict] = []
        self.shortest: dict[int, Scenario] = {}
        self._history = history
        self._shrink_tries = shrink_tries

    async def run(self, jobs: int, *, show: bool) -> int:
        """Simulate all of it and return the exit code."""
        waiting = iter(self.scenarios)
        async with open_pool(jobs) as pool, self._progress(show), trio.open_nursery() as nursery:
            for _ in range(min(jobs, len(self.scenarios))):
                nursery.start_soon(self._work, pool, waiting)
        return ExitCode.OK if all(verdict.held for verdict in self.verdicts) else ExitCode.FAILED

    async def _work(self, pool: Pool, waiting: Iterator[Scenario]) -> None:
        for scenario in waiting:
            verdict = await pool.simulate(scenario, history=self._history)
            self.verdicts.append(verdict)
            if not verdict.held and self._shrink_tries and len(self.shortest) < SHOWN_FAILURES:
                self.shortest[scenario.seed] = scenario
                self.shortest[scenario.seed] = await shrink(verdict, pool.simulate, tries=self._shrink_tries)

    @asynccontextmanager
    async def _progress(self, show: bool) -> AsyncIterator[None]:
        """Show how far it is."""
        if not show:
            yield
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # Redrawn by a task and not by rich's thread: see `quicflow load`.
        with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
            bar = progress.add_task("seeds", total=len(self.scenarios))

            async def redraw() -> None:
                while True:
                    broken = sum(not verdict.held for verdict in self.verdicts)
                    name = "seeds" if not broken else f"seeds, {broken} broken"
                    progress.update(bar, description=name, completed=len(self.verdicts), refresh=True)
                    await trio.sleep(0.2)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(redraw)
                yield
                nursery.cancel_scope.cancel()

    # -- what came of it -----------------------------------------------------------------------------------------------
    @property
    def broken(self) -> list[Verdict]:
        """The seeds that broke the promise."""
        return sorted((verdict for verdict in self.verdicts if not verdict.held), key=lambda verdict: verdict.scenario.seed)

    def as_json(self) -> dict[str, object]:
        """Return it for a program."""
        total = add(verdict.figures for verdict in self.verdicts)
        return {
            "seeds": len(self.verdicts),
            "broken": [
                {**verdict.as_json(), "shortest": None if short is None else short.command}
                for verdict in self.broken
                for short in [self.shortest.get(verdict.scenario.seed)]
            ],
            "digests": {verdict.scenario.seed: verdict.digest for verdict in self.verdicts},
            "availability": total.availability,
            "figures": asdict(total),
            "seconds": sum(verdict.seconds for verdict in self.verdicts),
        }

    def print(self) -> None:
        """Print it for people."""
        from rich.console import Console

        console = Console()
        for verdict in self.broken[:SHOWN_FAILURES]:
            for line in self._describe(verdict):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print(self._table(), highlight=False)

    def _describe(self, verdict: Verdict) -> list[str]:
        lines = [f"seed {verdict.scenario.seed} broke the promise; replay: {verdict.scenario.command}"]
        lines += [f"  {violation}" for violation in verdict.violations[:SHOWN_VIOLATIONS]]
        if len(verdict.violations) > SHOWN_VIOLATIONS:
            lines.append(f"  and {len(verdict.violations) - SHOWN_VIOLATIONS} more")
        short = self.shortest.get(verdict.scenario.seed)
        if short is not None and short.keep is not None:
            lines.append(f"  these {len(short.keep)} faults are enough; replay: {short.command}")
            lines += [f"    {fault}" for fault in make_schedule(short)]
        return lines

    def _table(self) -> Table:
        from rich.table import Table

        total = add(verdict.figures for verdict in self.verdicts)
        rules = Counter(rule for verdict in self.broken for rule in {violation.rule for violation in verdict.violations})
        table = Table(show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        rows = [
            ("seeds", f"{len(self.verdicts):,} of {len(self.scenarios):,}"),
            ("client-hours", f"{total.client_hours:,.1f}"),
            ("faults", f"{total.faults:,}"),
            ("of them killed processes", f"{total.kills:,}"),
            ("calls begun", f"{total.messages:,}"),
            ("requests answered", f"{total.acked:,}"),
            ("sends confirmed", f"{total.delivered:,}"),
            ("ended with an error", f"{total.failed:,}"),
            ("taken back by their caller", f"{total.cancelled:,}"),
            ("handlers started", f"{total.handled:,}"),
            ("connections", f"{total.connects:,}"),
            ("datagrams sent", f"{total.datagrams:,}"),
            ("of them lost or cut off", f"{total.lost:,}"),
            ("clients connected", f"{total.availability:.4%} of their time"),
            ("processor seconds", f"{sum(verdict.seconds for verdict in self.verdicts):,.1f}"),
            ("seeds that broke the promise", f"{len(self.broken):,}"),
            *((f"  {rule}", f"{number:,}") for rule, number in rules.items()),
        ]
        if len(self.verdicts) == 1:
            rows[1:1] = [("settings", str(make_settings(self.scenarios[0].seed))), ("history", self.verdicts[0].digest)]
        for row in rows:
            table.add_row(*row)
        return table
