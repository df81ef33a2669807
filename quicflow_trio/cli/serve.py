"""`quicflow serve`: a server to try clients against."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
from cyclopts import App, Parameter, validators

from ..config import OpsConfig, Protocol, ServerConfig, TLSConfig
from ..message import MessageType
from ..observe.logs import Logger, get_logger
from ..router import Request, Router
from ..server import Server
from ..server import serve as run_server
from ..tuning import tune_garbage_collector
from .access import Admission
from .common import (
    DEFAULT_PORT,
    Address,
    CommandFailed,
    ExitCode,
    Flag,
    JsonFlag,
    LogLevel,
    OpsToken,
    configure_logging,
    first_of,
)
from .stdin import read_all

__all__ = ["app"]

log: Logger = get_logger(__name__)

LONGEST_TEXT = 1000
"""Bytes of an event that are logged at most."""

EPILOGUE = """With --ops it answers `quicflow top`, `quicflow clients` and others, a browser
and Prometheus over HTTP. Who may see it: everybody on this machine; from
elsewhere, and for commands such as `quicflow send`, who has the token.

LOG_FORMAT=json in the environment makes the log lines JSON.

The first Ctrl-C or SIGTERM drains: no new client, clients are told, handlers
may end within --grace. A second one stops at once.

Exit codes: 0 stopped as asked (by `quicflow drain` too), 1 a port cannot be
bound, 2 usage (a certificate is missing or does not fit).

Examples:
  quicflow certs && quicflow serve
  quicflow serve --ops 127.0.0.1:8475
  quicflow serve --host 0.0.0.0 --client-ca certs/ca.pem --client-names
  quicflow serve --token-key secret --audience backbone --issuer login
  quicflow serve --port 0 --json --until-eof   (for scripts: read the port,
                                                close the pipe to stop it)
"""

app: App = App(name="serve", help_epilogue=EPILOGUE)


def make_router() -> Router:
    """Return the handlers of the server."""
    router = Router()

    @router.on(MessageType.COMMAND)
    async def upper(request: Request) -> bytes:
        return request.message.payload.upper()

    @router.on(MessageType.QUERY)
    async def echo(request: Request) -> bytes:
        return request.message.payload

    @router.on(MessageType.EVENT)
    async def take(request: Request) -> None:
        # Cut first: a megabyte that nobody reads need not be decoded.
        text = request.message.payload[:LONGEST_TEXT].decode(errors="backslashreplace")
        log.info("event", client_id=request.message.sender, text=text)

    return router


@app.default
async def serve(
    *,
    cert: Path = Path("certs/server.pem"),
    key: Path = Path("certs/server.key"),
    client_ca: Path | None = None,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65_535))] = DEFAULT_PORT,
    grace: Annotated[float, Parameter(validator=validators.Number(gte=0, lte=3600))] = 10.0,
    access: Admission = Admission(),  # noqa: B008 - frozen
    protocol: Protocol = "auto",
    reset_key: Path | None = None,
    ops: str | None = None,
    ops_token: OpsToken = None,
    until_eof: Flag = False,
    log_level: LogLevel = "info",
    json_output: JsonFlag = False,
) -> int:
    """Run a server that echoes queries, answers commands in upper case and logs events.

    Args:
        cert: the server's certificate chain, PEM.
        key: its private key, PEM.
        client_ca: admit only clients with a certificate of this authority, PEM.
        host: address to listen on. Beyond this machine anyone who reaches the port can connect, unless --client-ca is given.
        port: UDP port; 0 takes a free one.
        grace: how long a drain lets running handlers go on, seconds.
        access: who may connect.
        protocol: auto for both, quicflow/2, or quic-backbone-v1 (the original's, without credentials: a certificate must name the id).
        reset_key: file with a key, made when it does not exist, that tells clients at once when the server was killed and is back.
        ops: HOST:PORT on which to answer those who operate the server, over HTTP; port 0 takes a free one.
        ops_token: bearer token for them; without one commands are refused, and all who are not on this machine.
        until_eof: drain also when standard input ends, so that a server does not outlive the script that started it.
        log_level: debug, info, warning, error or off; logs go to standard error.
        json_output: print one JSON object with "host", "port" and "ops_url" once the server listens.
    """
    configure_logging(log_level)
    tune_garbage_collector()
    tls, authenticate = _load(cert, key, client_ca), access.authenticator(client_ca)
    ops_config = None if ops is None else OpsConfig(ops, token=ops_token)
    config = ServerConfig(reset_key_file=reset_key, rate=access.rate_limit(), protocol=protocol)
    run = partial(
        run_server, make_router(), host=host, port=port, tls=tls, authenticate=authenticate, config=config, ops=ops_config
    )
    stopped = trio.Event()

    async def run_to_end(task_status: trio.TaskStatus[Server]) -> None:
        await run(task_status=task_status)
        stopped.set()

    # Watched from before the announcement: a script may send its signal right after it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server: Server = await nursery.start(run_to_end)
            _announce(server, json_output)
            # It may be stopped over the ops side, too.
            await first_of(partial(anext, signals), stopped.wait, *([read_all] if until_eof else []))
            if not stopped.is_set():
                await first_of(partial(server.drain, grace=grace), partial(anext, signals))
                await server.aclose()
    return ExitCode.OK


def _announce(server: Server, json_output: bool) -> None:
    address = Address(*server.address)
    if json_output:
        print(json.dumps({"host": address.host, "port": address.port, "ops_url": server.ops_url}), flush=True)
    else:
        print(f"listening on {address}; Ctrl-C stops", flush=True)
        if server.ops_url is not None:
            print(f"ops side on {server.ops_url} (open it in a browser, or `quicflow top --ops {server.ops_url}`)", flush=True)


def _load(cert: Path, key: Path, client_ca: Path | None) -> TLSConfig:
    for file in (cert, key, client_ca):
        if file is not None and not file.is_file():
            hint = "hint: `quicflow certs` makes certificates in ./certs, where `quicflow serve` looks for them"
            raise CommandFailed(ExitCode.USAGE, f"{file}: no such file\n{hint}")
    return TLSConfig.server(cert, key, client_ca=client_ca)
