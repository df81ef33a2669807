"""What needs real processes and real sockets to be believed: `python -m tests.endurance --help`."""

from __future__ import annotations

from cyclopts import App

from benchmarks.harness.session import run_app
from tests.endurance import drain as drain_
from tests.endurance import kill as kill_
from tests.endurance import original as original_
from tests.endurance import reconnects as reconnects_
from tests.endurance import rolling as rolling_
from tests.endurance import soak as soak_
from tests.endurance import stuck as stuck_
from tests.endurance.conduct import Common, conduct

app = App(
    name="python -m tests.endurance",
    help="Prove, with real processes and real sockets, what is promised. Each ends with 1 where it does not hold.",
    help_format="plaintext",
    version_flags=(),
    backend="trio",
    suppress_keyboard_interrupt=False,
)


@app.command
async def reconnects(
    *,
    settings: reconnects_.Reconnects = reconnects_.Reconnects(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Make requests through a lossy UDP proxy and force reconnects meanwhile: nothing lost, nothing handled twice."""
    await conduct("reconnects", reconnects_.prove, settings, common)


@app.command
async def kill(
    *,
    settings: kill_.Kill = kill_.Kill(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Kill -9 the server in traffic and start it again: all clients come back, nothing that was acked is lost."""
    await conduct("kill", kill_.prove, settings, common)


@app.command
async def drain(
    *,
    settings: drain_.Drain = drain_.Drain(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Send SIGTERM to a server with requests in flight: all are answered, and it ends in time."""
    await conduct("drain", drain_.prove, settings, common)


@app.command
async def rolling(
    *,
    settings: rolling_.Rolling = rolling_.Rolling(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Replace the server in the middle of traffic, again and again: no call fails, none is handled twice."""
    await conduct("rolling", rolling_.prove, settings, common)


@app.command
async def stuck(
    *,
    settings: stuck_.Stuck = stuck_.Stuck(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Stop one client of a thousand: the server's memory stays bounded, and the others are served as before."""
    await conduct("stuck", stuck_.prove, settings, common)


@app.command
async def soak(
    *,
    settings: soak_.Soak = soak_.Soak(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Talk both ways for half an hour under faults: memory stays flat, and at the end nothing is left over."""
    await conduct("soak", soak_.prove, settings, common)


@app.command
async def original(
    *,
    settings: original_.Original = original_.Original(),  # noqa: B008 - frozen
    common: Common = Common(),  # noqa: B008 - frozen
) -> None:
    """Speak quic-backbone-v1 with a peer of the original's, as server and as client, across reconnects."""
    await conduct("original", original_.prove, settings, common)


if __name__ == "__main__":
    run_app(app)
