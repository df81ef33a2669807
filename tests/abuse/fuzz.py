"""The long run of the fuzzer: `python -m tests.abuse.fuzz --help`, or `nox -s fuzz`.

The short one is in `test_fuzz.py`, which also feeds the corpus: inputs that once broke something or reach far, one per file.
"""

from __future__ import annotations

import gc
import json
import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

import trio
from cyclopts import App
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from trio.testing import MockClock

from quicflow_trio.testing import seeded
from tests.abuse.targets import Finding, Meter, open_target

CORPUS = Path(__file__).parent / "corpus"
COUNTS = {"datagrams": 2_000_000, "packets": 200_000, "frames": 500_000}
"""Targets, and how many inputs a full run gives each."""

SLICE = 20_000
"""Inputs between two fresh starts: what a target has piled up by itself must not be taken for a finding, nor hide one."""
KEPT = 20
"""Findings of one run that are written down; the first hundred of one defect say no more."""

app = App(name="python -m tests.abuse.fuzz", help_format="plaintext", version_flags=())


def read_corpus(folder: Path, target: str) -> Iterator[tuple[Path, str, bytes]]:
    """Yield the inputs of a target: file, where, data."""
    for path in sorted(folder.glob(f"{target}-*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        yield path, entry["where"], bytes.fromhex(entry["data"])


def write_finding(folder: Path, target: str, finding: Finding) -> Path:
    """Add an input to the corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target}-{sha256(finding.where.encode() + finding.data).hexdigest()[:12]}.json"
    note = finding.what.strip().splitlines()[-1]
    entry = {"where": finding.where, "note": note, "data": finding.data.hex()}
    path.write_text(json.dumps(entry, indent=1) + "\n", encoding="utf-8")
    return path


async def fuzz(target: str, meter: Meter, rng: random.Random, corpus: Sequence[bytes], *, inputs: int, until: float) -> None:
    """Feed one target until it has had so many inputs more, or the time (`time.monotonic`) has come."""
    end = meter.inputs + inputs
    async with open_target(target, meter, corpus) as opened:
        # A collection that falls into an input would be counted as its own.
        gc.collect()
        gc.disable()
        try:
            while meter.inputs < end and time.monotonic() < until:
                before = meter.inputs
                await opened.step(rng)
                if meter.inputs // 1000 != before // 1000:
                    gc.collect(1)
        finally:
            gc.enable()


def run_target(target: str, meter: Meter, *, inputs: int, seconds: float, seed: int, folder: Path, progress: Progress) -> float:
    """Fuzz one target in slices; return the seconds it took."""
    corpus = [data for _, _, data in read_corpus(folder, target)]
    started = time.monotonic()
    until = started + seconds
    bar = progress.add_task(target, total=inputs)
    number = 0
    while meter.inputs < inputs and time.monotonic() < until:
        with seeded(seed + number):
            rng = random.Random(f"{target} {seed} {number}")
            step = min(SLICE, inputs - meter.inputs)
            clock = MockClock(autojump_threshold=0)
            trio.run(partial(fuzz, target, meter, rng, corpus, inputs=step, until=until), clock=clock)
        number += 1
        progress.update(bar, completed=meter.inputs)
    return time.monotonic() - started


@app.default
def main(
    *,
    targets: Sequence[str] = tuple(COUNTS),
    share: float = 1.0,
    seconds: float = 3600.0,
    seed: int = 1,
    corpus: Path = CORPUS,
    keep: bool = False,
) -> None:
    """Feed datagrams, encrypted packets and application frames; end with 1 when anything was found.

    A full run is 2,000,000 datagrams, 200,000 packets and 500,000 frames.

    Args:
        targets: datagrams, packets, frames.
        share: part of the full run, 0 to 1.
        seconds: time for each target.
        seed: seed of the run; slice N of it runs under seed + N.
        corpus: folder of inputs to start from.
        keep: write findings into the corpus, which the suite feeds from then on.
    """
    # Each refused frame is a line otherwise.
    logging.getLogger("quicflow_trio").setLevel(logging.CRITICAL)
    console = Console(stderr=True)
    table = Table("target", "inputs", "seconds", "per second", "slowest", "findings", "ends")
    found = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        for target in targets:
            meter = Meter()
            inputs = max(1, round(COUNTS[target] * share))
            spent = run_target(target, meter, inputs=inputs, seconds=seconds, seed=seed, folder=corpus, progress=progress)
            ends = ", ".join(f"{reason}: {count:,}" for reason, count in meter.outcomes.most_common(8))
            table.add_row(
                target,
                f"{meter.inputs:,}",
                f"{spent:.0f}",
                f"{meter.inputs / max(spent, 0.001):,.0f}",
                f"{meter.slowest * 1000:.1f} ms",
                str(len(meter.findings)),
                ends,
            )
            found += len(meter.findings)
            for finding in meter.findings[:KEPT]:
                console.print(f"{target}, {finding.where}: {finding.what}\n  {finding.data[:200].hex()}", markup=False)
                if keep:
                    console.print(f"  kept as {write_finding(corpus, target, finding)}", markup=False)
    Console().print(table)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    app()
