"""A server that shows all of itself, with clients that give it something to show. Run it: ``python examples/monitoring/server.py``.

The ops side answers on http://127.0.0.1:8475: the live page at /, Prometheus' figures at /metrics. The hooks below keep an audit file
of who came and went, and say in the log which clients come back too often. README.md, beside this file, has the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
from collections import deque
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from quicflow_trio import (
    AckTimeout,
    Client,
    ConfigurationError,
    ConnectEvent,
    ConnectionClosed,
    ConnectionLost,
    DisconnectEvent,
    Event,
    HandlerFailed,
    HeartbeatTimeoutEvent,
    Hooks,
    Message,
    MessageType,
    OpsConfig,
    QuicFlowError,
    ReconnectEvent,
    Request,
    Router,
    Server,
    SessionReplaced,
    TLSConfig,
    configure_logging,
    open_client,
    serve,
    tune_garbage_collector,
)
from quicflow_trio.observe.logs import get_logger
from quicflow_trio.testing import throwaway_tls

log = get_logger("monitoring")


# -- hooks: what this program does about events ------------------------------------------------------------------------
class Audit:
    """A file of one JSON object a line: who connected and disconnected, when, from where, and why."""

    def __init__(self, file: trio.Path) -> None:
        self._file = file
        self._lock = trio.Lock()

    async def write(self, event: Event) -> None:
        """Append an event. A hook may wait, for a slow disk as here: the traffic does not, and up to 1,024 events wait for it."""
        line = json.dumps(event.as_json()) + "\n"
        # Each kind of event has a hook, and so a task, of its own.
        async with self._lock, await self._file.open("a", encoding="utf-8") as out:
            await out.write(line)


class Flapping:
    """Warns of a client that came back five times within a minute: two programs with one id, a battery, a bad cable."""

    TIMES = 5
    SECONDS = 60.0

    def __init__(self) -> None:
        self._returns: dict[str, deque[float]] = {}

    async def note(self, event: ReconnectEvent) -> None:
        """Take note of a return, and warn when there were too many."""
        returns = self._returns.setdefault(event.client_id, deque(maxlen=self.TIMES))
        returns.append(event.at)
        if len(returns) == self.TIMES and returns[-1] - returns[0] <= self.SECONDS:
            log.warning("client comes back too often", client_id=event.client_id, times=self.TIMES, within=self.SECONDS)
            returns.clear()

    def forget_before(self, at: float) -> None:
        """Forget clients whose last return was earlier: ids come from outside, and would fill the memory."""
        self._returns = {client_id: returns for client_id, returns in self._returns.items() if returns and returns[-1] >= at}


def make_hooks(audit: Audit, flapping: Flapping) -> Hooks:
    hooks = Hooks()
    # One hook for all three: it sees them in the order in which they happened.
    hooks.add(audit.write, ConnectEvent, DisconnectEvent, HeartbeatTimeoutEvent)
    hooks.add(flapping.note, ReconnectEvent)
    return hooks


async def forget_for_ever(flapping: Flapping, server: Server) -> None:
    while True:
        await trio.sleep(flapping.SECONDS)
        flapping.forget_before(server.metrics().timestamp - flapping.SECONDS)


# -- the server's own work: it takes readings, and asks its clients how they are ---------------------------------------
def make_router() -> Router:
    router = Router()

    @router.on(MessageType.EVENT)
    async def reading(request: Request) -> None:
        float(request.message.payload)

    @router.on(MessageType.QUERY)
    async def mean(request: Request) -> bytes:
        values = json.loads(request.message.payload)
        return json.dumps(sum(values) / len(values)).encode()

    return router


async def ask_for_ever(server: Server) -> None:
    """Ask every client for its state, all the time: the latency that the server measures is that of its own requests."""
    while True:
        async with trio.open_nursery() as nursery:
            for client_id in [*server.sessions]:
                nursery.start_soon(ask, server, client_id)
            await trio.sleep(0.5)


async def ask(server: Server, client_id: str) -> None:
    try:
        await server.session(client_id).request(Message.query(b"how are you?"), ack_timeout=0.5)
    except QuicFlowError as exc:
        # Slow, failed, or gone in the meantime: the metrics count it, the log has it for who looks closer.
        log.debug("no answer", client_id=client_id, error=exc)


async def tell_for_ever(server: Server) -> None:
    # Once it is drained the server has nobody left to tell, and the program ends.
    with suppress(ConnectionClosed):
        while True:
            await trio.sleep(5)
            await server.broadcast(Message.event(b"the time is now"))


# -- made-up clients ---------------------------------------------------------------------------------------------------
def client_router(rng: random.Random) -> Router:
    router = Router()

    @router.on(MessageType.QUERY)
    async def how_are_you(_: Request) -> bytes:
        # Most answer within milliseconds, some are slow, a few too slow for the server, and a few have a defect.
        await trio.sleep(rng.lognormvariate(-5.0, 1.0))
        if rng.random() < 0.01:
            await trio.sleep(1.0)
        if rng.random() < 0.003:
            raise RuntimeError("the sensor does not answer")
        return b"well"

    @router.on(MessageType.EVENT)
    async def take(_: Request) -> None:
        pass

    return router


async def run_client(number: int, address: tuple[str, int], tls: TLSConfig) -> None:
    """Connect, send readings and queries for a while, leave, and come back; for ever."""
    rng = random.Random(number)
    host, port = address
    while True:
        try:
            async with open_client(host, port, client_id=f"sensor-{number:03}", tls=tls, router=client_router(rng)) as client:
                with trio.move_on_after(rng.uniform(20, 120)):
                    while True:
                        await client.send(Message.event(f"{rng.gauss(20, 3):.2f}".encode()))
                        if rng.random() < 0.2:
                            await query(client, rng)
                        await trio.sleep(rng.expovariate(5.0))
        except SessionReplaced:
            # Somebody else connected under this id, `quicflow connect --id` for instance, and may keep it.
            return
        await trio.sleep(rng.uniform(0.5, 5))


async def query(client: Client, rng: random.Random) -> None:
    # Now and then there is nothing to take the mean of: the server's handler fails, and both sides count it.
    values = [rng.gauss(20, 3) for _ in range(rng.choice([0, *[5] * 50]))]
    try:
        await client.request(Message.query(json.dumps(values).encode()), ack_timeout=1.0)
    except (HandlerFailed, AckTimeout, ConnectionLost) as exc:
        # The connection may be lost at any time, or closed by an operator; the client connects again by itself.
        log.debug("no mean", client_id=client.client_id, error=exc)


# -- the program -------------------------------------------------------------------------------------------------------
def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A quicflow_trio server to be watched, and made-up clients for it.")
    parser.add_argument("--clients", type=int, default=10, metavar="N", help="made-up clients in this process (10)")
    parser.add_argument("--port", type=int, default=8474, help="UDP port of the server; 0 takes a free one (8474)")
    parser.add_argument(
        "--ops", default="127.0.0.1:8475", metavar="HOST:PORT", help="where the ops side answers (127.0.0.1:8475)"
    )
    parser.add_argument("--audit", type=Path, default=Path("audit.jsonl"), help="file of connects and disconnects (audit.jsonl)")
    parser.add_argument("--json", action="store_true", help="log JSON lines; LOG_FORMAT and LOG_LEVEL are heeded as well")
    return parser.parse_args(arguments)


async def run(options: argparse.Namespace) -> None:
    # In production: TLSConfig.server("server.pem", "server.key"); `quicflow certs` makes the files.
    server_tls, client_tls = throwaway_tls()
    flapping = Flapping()
    ops = OpsConfig(options.ops, token=os.environ.get("QUICFLOW_OPS_TOKEN") or None)
    hooks = make_hooks(Audit(trio.Path(options.audit)), flapping)
    # Watched from before the announcement: whoever waits for it may send a signal at once.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def serve_to_end(task_status: trio.TaskStatus[Server]) -> None:
                run = partial(serve, make_router(), host="127.0.0.1", port=options.port, tls=server_tls, ops=ops, hooks=hooks)
                await run(task_status=task_status)
                # By the signal below or by `quicflow drain`: with the server ends the program.
                nursery.cancel_scope.cancel()

            server: Server = await nursery.start(serve_to_end)
            print(f"ops side on {server.ops_url}; Ctrl-C stops", flush=True)
            for task in (ask_for_ever, tell_for_ever, partial(forget_for_ever, flapping)):
                nursery.start_soon(task, server)
            for number in range(options.clients):
                nursery.start_soon(run_client, number, server.address, client_tls)
            await anext(signals)
            print("draining", flush=True)
            await server.drain(grace=2)
    print("drained")


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        configure_logging(format="json" if options.json else None)
        tune_garbage_collector()
        trio.run(run, options)
    except* (OSError, ConfigurationError) as group:
        # A port that is taken, a LOG_LEVEL that is none: said in a line, without a traceback.
        sys.exit(f"server.py: {group.exceptions[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
