"""What one attacker costs the others: a client's round trips while the server is quiet, and while somebody else misbehaves.

A server with signed tokens, permissions and a rate limit, a client that asks 100 times a second, and an attacker, in processes of their
own over loopback UDP. The attacks, in turn with quiet times::

    over the rate     256 tasks that ask as fast as they can, and start again when they are refused
    not permitted     the same with a type that the attacker may not send
    without waiting   messages that want no answer, as fast as the outbox takes them
    strangers         connections without good credentials, one after the other from 8 tasks

Run it: ``python -m benchmarks.attacker [--seconds 5] [--rounds 3] [--unlimited]``. ``--unlimited`` takes the limits away, to compare.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import jwt
import trio

from quicflow_trio import (
    ClientConfig,
    Message,
    MessageType,
    PermissionDenied,
    QuicFlowError,
    RateLimit,
    RateLimited,
    Request,
    Router,
    ServerConfig,
    SignedTokens,
    TLSConfig,
    open_client,
    serve,
    tune_garbage_collector,
)
from quicflow_trio.quic.certificates import make_authority, make_server_certificate

SECRET = "the attacker does not know this secret"
ATTACKS = ("over the rate", "not permitted", "without waiting", "strangers")
ASKED_PER_SECOND = 100
PAYLOAD = bytes(200)


def token(client_id: str, *rules: str) -> bytes:
    claims = {"sub": client_id, "aud": "bench", "iss": "bench", "exp": time.time() + 3600, "permissions": [*rules]}
    return jwt.encode(claims, SECRET).encode()


# -- the server --------------------------------------------------------------------------------------------------------
async def run_server(folder: Path, limited: bool) -> None:
    tune_garbage_collector()
    router = Router()

    async def echo(request: Request) -> bytes:
        return request.message.payload

    for type in (MessageType.COMMAND, MessageType.QUERY, MessageType.EVENT):
        router.add(type, echo)
    authenticate = SignedTokens(SECRET, algorithms=["HS256"], audience="bench", issuer="bench")
    config = ServerConfig(rate=RateLimit(messages=500, bytes=1_000_000) if limited else None)
    tls = TLSConfig.server(folder / "server.pem", folder / "server.key")
    async with trio.open_nursery() as nursery:
        run = partial(serve, router, host="127.0.0.1", port=0, tls=tls, authenticate=authenticate, config=config)
        server = await nursery.start(run)
        print(server.address[1], flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
        figures = server.metrics()
        print(f"{time.process_time():.1f} s CPU, {dict(figures.authentications)}, {dict(figures.messages_refused)}", flush=True)
        nursery.cancel_scope.cancel()


# -- the attacker ------------------------------------------------------------------------------------------------------
async def attack(kind: str, folder: Path, port: int, seconds: float, limited: bool) -> None:
    os.nice(19)  # It must not take the processor from the client that is measured; the server is on the other one.
    tls = TLSConfig.client(folder / "ca.pem")
    counted = 0
    message = Message.command if kind == "not permitted" else Message.query
    rules = ["query", "event"] if limited else ["*"]

    async def ask(client: object) -> None:
        nonlocal counted
        while True:
            with suppress(RateLimited, PermissionDenied):  # An honest client would wait.
                await client.request(message(PAYLOAD))  # type: ignore[attr-defined]
            counted += 1

    async def knock() -> None:
        nonlocal counted
        while True:
            try:
                config = ClientConfig(close_grace=0)
                async with open_client(
                    "127.0.0.1", port, client_id="client", tls=tls, credentials=b"guess", config=config
                ) as client:
                    await client.wait_connected()
            except QuicFlowError:
                counted += 1

    with trio.move_on_after(seconds):
        if kind == "strangers":
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(knock)
        async with open_client("127.0.0.1", port, client_id="attacker", tls=tls, credentials=token("attacker", *rules)) as client:
            if kind == "without waiting":
                while True:
                    await client.send(Message.event(PAYLOAD))
                    counted += 1
            async with trio.open_nursery() as nursery:
                for _ in range(256):
                    nursery.start_soon(ask, client)
    print(counted, flush=True)


# -- the client that is measured -----------------------------------------------------------------------------------------
async def measure(folder: Path, port: int, seconds: float) -> list[float]:
    """Return round trips, seconds, of requests made at fixed times."""
    trips: list[float] = []
    tls = TLSConfig.client(folder / "ca.pem")
    async with open_client("127.0.0.1", port, client_id="client", tls=tls, credentials=token("client", "*")) as client:
        await client.wait_connected()
        start = trio.current_time() + 0.5
        for number in range(int(seconds * ASKED_PER_SECOND)):
            due = start + number / ASKED_PER_SECOND
            await trio.sleep_until(due)
            await client.request(Message.query(PAYLOAD))
            # From when it was due: a stall counts for all requests that it holds up.
            trips.append(trio.current_time() - due)
    return trips


def report(name: str, trips: list[float], note: str = "") -> None:
    cuts = statistics.quantiles(trips, n=100)
    print(
        f"{name:16} P50 {cuts[49] * 1000:6.2f} ms   P99 {cuts[98] * 1000:6.2f} ms   worst {max(trips) * 1000:7.2f} ms   {note}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unlimited", action="store_true")
    parser.add_argument("--role", nargs="*", default=[])
    arguments = parser.parse_args()
    logging.getLogger("quicflow_trio").setLevel(logging.CRITICAL)
    limited = not arguments.unlimited
    if arguments.role[:1] == ["server"]:
        trio.run(run_server, Path(arguments.role[1]), limited)
        return
    if arguments.role[:1] == ["attacker"]:
        _, kind, folder, port = arguments.role
        trio.run(attack, kind, Path(folder), int(port), arguments.seconds, limited)
        return
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary), arguments.seconds, arguments.rounds, limited)


def run(folder: Path, seconds: float, rounds: int, limited: bool) -> None:
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority(now=now)
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    make_server_certificate(authority, ["127.0.0.1"], now=now).write_pem(folder / "server.pem", folder / "server.key")
    command = [
        sys.executable,
        "-m",
        "benchmarks.attacker",
        "--seconds",
        str(seconds + 1.5),
        *([] if limited else ["--unlimited"]),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "--role", "server", str(folder)], stdin=pipe, stdout=pipe, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        trips: dict[str, list[float]] = {}
        counted: dict[str, int] = {}
        for _ in range(rounds):
            for kind in ATTACKS:
                trips.setdefault("quiet", []).extend(trio.run(measure, folder, port, seconds / 2))
                role = ["--role", "attacker", kind, str(folder), str(port)]
                with subprocess.Popen([*command, *role], stdout=pipe, text=True) as attacker:
                    trips.setdefault(kind, []).extend(trio.run(measure, folder, port, seconds))
                    counted[kind] = counted.get(kind, 0) + int(attacker.communicate()[0])
        for name, values in trips.items():
            report(name, values, f"{counted[name] / rounds / (seconds + 1.5):8,.0f} attempts/s" if name in counted else "")
        server.stdin.write("\n")
        server.stdin.flush()
        print(f"server: {server.stdout.readline().strip()}")


if __name__ == "__main__":
    main()
